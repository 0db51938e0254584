//! What the actors tell the world: drafts for the journal (DESIGN §9, API "Events").

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use optio_store::{Draft, JournalStream, SessionId};
use serde::Serialize;
use tracing::error;

/// The stream that feeds the session list: what changes a row there, of every session.
pub const SERVICE_STREAM: &str = "service";

/// The names that go to [`SERVICE_STREAM`] too.
fn concerns_the_service(name: &str) -> bool {
    ["session.", "seed.", "approval.", "snapshot."].iter().any(|prefix| name.starts_with(prefix))
        || name == "attention"
}

/// Tells one session's events. Clones write to the same stream.
#[derive(Clone)]
pub struct Events {
    session: SessionId,
    stream: Arc<dyn JournalStream>,
    service: Arc<dyn JournalStream>,
}

impl Events {
    /// Events of `session` go to `stream`, and those that change its row in a list to `service` too.
    pub fn new(session: SessionId, stream: Arc<dyn JournalStream>, service: Arc<dyn JournalStream>) -> Self {
        Self { session, stream, service }
    }

    /// The session's own stream.
    pub fn stream(&self) -> &Arc<dyn JournalStream> {
        &self.stream
    }

    /// Tells an event whose members are those of `body`, a JSON object. In order with everything told before, unless
    /// the disk holds the journal back; then it follows as soon as there is room.
    pub fn tell(&self, name: &'static str, body: &impl Serialize) {
        let members = match serde_json::to_vec(body) {
            Ok(json) => members_of(json),
            Err(problem) => {
                error!(session = %self.session, event = name, %problem, "event has no json form");
                return;
            }
        };
        // Of a session without a stream of its own any more, there is one stream to tell.
        if concerns_the_service(name) && !Arc::ptr_eq(&self.service, &self.stream) {
            append(&self.service, self.draft(Cow::Borrowed(name), members.clone()));
        }
        append(&self.stream, self.draft(Cow::Borrowed(name), members));
    }

    /// The draft of a Codex notification: its method and its payload as they came (verbatim, one copy).
    pub fn codex_draft(&self, name: Cow<'static, str>, method: &str, params: &[u8]) -> Draft {
        let mut body = Vec::with_capacity(params.len() + method.len() + 24);
        body.extend_from_slice(br#""method":"#);
        // A method is what an agent says; only its JSON form may reach a line of ours.
        body.extend_from_slice(serde_json::Value::from(method).to_string().as_bytes());
        body.extend_from_slice(br#","codex":"#);
        body.extend_from_slice(if params.is_empty() { b"null" } else { params });
        self.draft(name, Bytes::from(body))
    }

    fn draft(&self, name: Cow<'static, str>, body: Bytes) -> Draft {
        Draft { name, body, session: Cow::Owned(self.session.to_string()) }
    }
}

/// Tells an event that is about no session: to the service's own stream, under an empty session. The members are those of
/// `body`, a JSON object.
pub(crate) fn tell_of_service(
    service: &Arc<dyn JournalStream>,
    name: &'static str,
    body: &serde_json::Value,
) {
    let members = members_of(body.to_string().into_bytes());
    append(service, Draft { name: Cow::Borrowed(name), body: members, session: Cow::Borrowed("") });
}

/// `{"a":1}` → `"a":1`: the journal writes the braces and the envelope.
fn members_of(mut json: Vec<u8>) -> Bytes {
    debug_assert!(json.first() == Some(&b'{') && json.last() == Some(&b'}'), "event bodies are objects");
    json.pop();
    Bytes::from(json).slice(1..)
}

/// Appends now, or in the background when the journal holds its writers back.
fn append(stream: &Arc<dyn JournalStream>, draft: Draft) {
    let stream = Arc::clone(stream);
    let mut appending = Box::pin(async move {
        let name = draft.name.clone();
        if let Err(problem) = stream.append(draft).await {
            error!(event = %name, %problem, "event is not in the journal");
        }
    });
    if (&mut appending).now_or_never().is_none() {
        actix_rt::spawn(appending);
    }
}
