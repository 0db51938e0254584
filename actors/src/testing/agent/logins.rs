//! Logins by a code, as codex 0.142.5 tells them.

use std::path::PathBuf;

use optio_host::fake::FakeHost;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{FakeAgents, login};

/// The code that every agent shows.
pub const CODE: &str = "ABCD-12345";

/// A login that waits for a person.
pub(super) struct Waiting {
    id: String,
    home: PathBuf,
    out: mpsc::UnboundedSender<String>,
}

impl Waiting {
    fn tell(&self, error: Option<&str>) {
        let params = json!({ "loginId": self.id, "success": error.is_none(), "error": error });
        let line = json!({ "method": "account/login/completed", "params": params }).to_string();
        // A client that went away hears nothing.
        let _ = self.out.send(line);
    }
}

impl FakeAgents {
    pub(super) fn login_waits(&self, home: PathBuf, out: mpsc::UnboundedSender<String>) -> Value {
        let id = Uuid::now_v7().to_string();
        let answer = json!({
            "type": "chatgptDeviceCode", "loginId": id,
            "verificationUrl": "https://auth.openai.com/codex/device", "userCode": CODE,
        });
        self.lock().logins.push(Waiting { id, home, out });
        answer
    }

    /// `false` when no such login waits.
    pub(super) fn login_is_over(&self, id: &str, why: &str) -> bool {
        let mut inner = self.lock();
        let at = inner.logins.iter().position(|waiting| waiting.id == id);
        at.map(|at| inner.logins.remove(at).tell(Some(why))).is_some()
    }

    /// A person enters the code of the oldest login that waits: its agent writes the login of `account`, then tells.
    pub fn enter_code(&self, host: &FakeHost, account: &str) {
        let auth_json = login(account, 1);
        let waiting = self.oldest();
        host.put_file(&waiting.home.join("auth.json"), auth_json.clone());
        self.lock().newest.insert(account.to_owned(), auth_json);
        waiting.tell(None);
    }

    /// A person refuses the oldest login that waits.
    pub fn refuse_code(&self) {
        self.oldest().tell(Some("device auth failed with status 400 Bad Request"));
    }

    fn oldest(&self) -> Waiting {
        self.lock().logins.remove(0)
    }
}
