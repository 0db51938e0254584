//! A login between Codex's file and a seed's row.

use optio_codex_protocol::auth::{self, Credential};
use optio_store::Account;

/// Whose login the content of an `auth.json` is: what a store needs to know of one that another program stored.
pub fn account_in(auth_json: &[u8]) -> Account {
    account_of(&auth::read(auth_json))
}

/// Whose login it is, for people and for comparing. No secret.
pub(crate) fn account_of(credential: &Credential) -> Account {
    match credential {
        Credential::ChatGpt(login) => Account {
            id: login.account_id.clone(),
            email: login.email.clone(),
            plan: login.plan.clone(),
            kind: "chatgpt".to_owned(),
        },
        Credential::ApiKey(_) => Account { kind: "api_key".to_owned(), ..Account::default() },
        Credential::Other(login) => {
            Account { id: login.account_id.clone(), kind: login.kind.clone(), ..Account::default() }
        }
        Credential::LoggedOut | Credential::Unreadable(_) => Account::default(),
    }
}
