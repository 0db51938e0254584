//! The cookie of a browser that was let in: its end and a random part, sealed with the token for a role.
//!
//! Nothing is kept of it here, so it is good after a restart too, and a new token ends them all.

use actix_web::HttpRequest;
use actix_web::cookie::time::Duration;
use actix_web::cookie::{Cookie, SameSite};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use optio_actors::terminal::Role;
use sha2::Sha256;

const NAME: &str = "optio_session";

/// How long a browser stays logged in, in seconds: 30 days.
const LIFE: i64 = 30 * 24 * 3600;

/// Sets the seal of a role apart from any other that is ever made with the token.
fn purpose(role: Role) -> &'static str {
    match role {
        Role::Operator => "optio-codex cookie v1",
        Role::Viewer => "optio-codex viewer's cookie v1",
    }
}

/// Makes and checks cookies.
pub(crate) struct Cookies {
    seal: Hmac<Sha256>,
    secure: bool,
}

impl Cookies {
    /// `secure` keeps a cookie from travelling without TLS.
    pub(crate) fn new(token: &str, secure: bool) -> Self {
        let seal = Hmac::new_from_slice(token.as_bytes()).expect("HMAC takes a key of any length");
        Self { seal, secure }
    }

    /// Makes one for a browser that showed a good ticket.
    pub(super) fn bake(&self, role: Role) -> Cookie<'static> {
        let ends = Timestamp::now().as_second() + LIFE;
        let random = uuid::Uuid::new_v4().simple().to_string();
        let seal = hex(&self.seal_of(role, &ends.to_string(), &random).finalize().into_bytes());
        Cookie::build(NAME, format!("{ends}.{random}.{seal}"))
            .path("/")
            .http_only(true)
            .secure(self.secure)
            .same_site(SameSite::Strict)
            .max_age(Duration::seconds(LIFE))
            .finish()
    }

    /// Whom the request's cookie lets in, if it was made here and has not run out.
    pub(super) fn admit(&self, request: &HttpRequest) -> Option<Role> {
        let cookies = request.cookies().ok()?;
        cookies.iter().filter(|cookie| cookie.name() == NAME).find_map(|cookie| self.role_of(cookie.value()))
    }

    fn role_of(&self, value: &str) -> Option<Role> {
        let mut parts = value.split('.');
        let (ends, random, seal) = (parts.next()?, parts.next()?, parts.next()?);
        let lives = ends.parse::<i64>().is_ok_and(|ends| Timestamp::now().as_second() < ends);
        if parts.next().is_some() || !lives {
            return None;
        }
        let seal = unhex(seal)?;
        let fits = |role: &Role| self.seal_of(*role, ends, random).verify_slice(&seal).is_ok();
        [Role::Operator, Role::Viewer].into_iter().find(fits)
    }

    fn seal_of(&self, role: Role, ends: &str, random: &str) -> Hmac<Sha256> {
        self.seal.clone().chain_update(format!("{}\n{ends}\n{random}", purpose(role)))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_the_token_that_made_it_only() {
        let ours = Cookies::new("token", false);
        let cookie = ours.bake(Role::Operator);
        assert_eq!(ours.role_of(cookie.value()), Some(Role::Operator));
        assert_eq!(Cookies::new("another", false).role_of(cookie.value()), None);
        assert_eq!(ours.role_of(ours.bake(Role::Viewer).value()), Some(Role::Viewer));
    }

    #[test]
    fn a_cookie_cannot_be_given_a_longer_life() {
        let ours = Cookies::new("token", false);
        let cookie = ours.bake(Role::Viewer);
        let (ends, rest) = cookie.value().split_once('.').expect("it has three parts");
        let later = ends.parse::<i64>().expect("the first is a time") + 1;
        assert_eq!(ours.role_of(&format!("{later}.{rest}")), None);
        for bad in ["", ".", "..", "1.2.3.4", &format!("{ends}.{rest}.0"), &format!("{ends}.x.zz")] {
            assert_eq!(ours.role_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_cookie_runs_out() {
        let ours = Cookies::new("token", false);
        let past = (Timestamp::now().as_second() - 1).to_string();
        let seal = hex(&ours.seal_of(Role::Operator, &past, "r").finalize().into_bytes());
        assert_eq!(ours.role_of(&format!("{past}.r.{seal}")), None);
    }
}
