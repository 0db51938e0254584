//! A login between Codex's file and a seed's row.

use optio_codex_protocol::auth::Credential;
use optio_store::Account;

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
