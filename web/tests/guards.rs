//! Who is let in, from where, and how.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Reply, World};
use reqwest::{Method, StatusCode};
use serde_json::json;

const ROUTES: [(Method, &str); 39] = [
    (Method::GET, "/v1/sessions"),
    (Method::POST, "/v1/sessions"),
    (Method::GET, "/v1/sessions/ses_x"),
    (Method::PATCH, "/v1/sessions/ses_x"),
    (Method::DELETE, "/v1/sessions/ses_x"),
    (Method::POST, "/v1/sessions/ses_x/stop"),
    (Method::POST, "/v1/sessions/ses_x/resume"),
    (Method::POST, "/v1/sessions/ses_x/turns"),
    (Method::POST, "/v1/sessions/ses_x/interrupt"),
    (Method::GET, "/v1/sessions/ses_x/approvals"),
    (Method::POST, "/v1/sessions/ses_x/approvals/apr_x"),
    (Method::GET, "/v1/sessions/ses_x/events"),
    (Method::GET, "/v1/sessions/ses_x/messages"),
    (Method::GET, "/v1/sessions/ses_x/actors"),
    (Method::GET, "/v1/sessions/ses_x/snapshots"),
    (Method::POST, "/v1/sessions/ses_x/faults"),
    (Method::GET, "/v1/sessions/ses_x/files/a"),
    (Method::GET, "/v1/sessions/ses_x/deliverables"),
    (Method::POST, TICKET),
    (Method::GET, "/v1/sessions/ses_x/terminal/token"),
    (Method::GET, "/v1/sessions/ses_x/terminal/"),
    (Method::GET, "/v1/events"),
    (Method::GET, "/v1/seeds"),
    (Method::POST, "/v1/seeds"),
    (Method::DELETE, "/v1/seeds/x"),
    (Method::POST, "/v1/seeds/login"),
    (Method::GET, "/v1/seeds/login/x"),
    (Method::DELETE, "/v1/seeds/login/x"),
    (Method::POST, "/v1/seeds/x/assign"),
    (Method::POST, "/v1/seeds/x/status"),
    (Method::POST, "/v1/seeds/x/verify"),
    (Method::GET, "/v1/hosts"),
    (Method::POST, "/v1/hosts"),
    (Method::GET, "/v1/hosts/x"),
    (Method::DELETE, "/v1/hosts/x"),
    (Method::POST, "/v1/hosts/x/probe"),
    (Method::POST, "/v1/hosts/x/reap"),
    (Method::POST, "/v1/hosts/x/host-key"),
    (Method::POST, "/v1/login-links"),
];

/// What somebody may ask for who only looks on, although it is no GET.
const TICKET: &str = "/v1/sessions/ses_x/terminal/ticket";

fn mutating() -> impl Iterator<Item = (Method, &'static str)> {
    ROUTES.into_iter().filter(|(method, _)| *method != Method::GET)
}

#[actix_web::test]
async fn nothing_under_v1_is_had_without_a_login() {
    let world = World::start().await;
    let unknown = [
        (Method::GET, "/v1"),
        (Method::GET, "/v1/"),
        (Method::GET, "/v1/nothing"),
        (Method::PUT, "/v1/events"),
    ];
    // Routes are matched by the decoded path, so the check has to be.
    let disguised = [(Method::GET, "/%761/sessions"), (Method::GET, "/v1/%73essions")];
    for (method, path) in ROUTES.into_iter().chain(unknown).chain(disguised) {
        let without = Reply::to(world.anonymous(method.clone(), path)).await;
        assert_eq!(without.problem(), (401, "unauthenticated".to_owned()), "{method} {path}");
        assert_eq!(without.header("www-authenticate"), "Bearer");
        for wrong in ["", "the-token-of-the-tes", "the-token-of-the-test2"] {
            let wrong = Reply::to(world.anonymous(method.clone(), path).bearer_auth(wrong)).await;
            assert_eq!(wrong.problem(), (401, "unauthenticated".to_owned()), "{method} {path}");
        }
    }
    let basic = world.anonymous(Method::GET, "/v1/sessions").basic_auth("x", Some(common::TOKEN));
    assert_eq!(Reply::to(basic).await.status, 401);
    let forged =
        world.anonymous(Method::GET, "/v1/sessions").header("cookie", "optio_session=9999999999.x.00");
    assert_eq!(Reply::to(forged).await.status, 401);
    assert_eq!(world.get("/v1/sessions").await.status, 200);
    world.stop().await;
}

#[actix_web::test]
async fn health_needs_no_login() {
    let world = World::start().await;
    for path in ["/healthz", "/readyz", "/"] {
        assert_eq!(Reply::to(world.anonymous(Method::GET, path)).await.status, 200, "{path}");
    }
    world.stop().await;
}

#[actix_web::test]
async fn a_login_link_logs_one_browser_in_once() {
    let world = World::start().await;
    let link = world.web.login_link(&world.base);
    let path = link.strip_prefix(&world.base).unwrap();
    let first = Reply::to(world.anonymous(Method::GET, path)).await;
    assert_eq!((first.status, first.header("location")), (StatusCode::SEE_OTHER, "/"));
    assert_eq!(first.header("referrer-policy"), "no-referrer");
    let cookie = first.header("set-cookie").to_owned();
    for part in ["optio_session=", "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "plain HTTP is how loopback is served: {cookie}");

    let second = Reply::to(world.anonymous(Method::GET, path)).await;
    assert_eq!(second.problem(), (401, "unauthenticated".to_owned()));
    let person = Reply::to(world.anonymous(Method::GET, path).header("accept", "text/html,*/*")).await;
    assert_eq!((person.status.as_u16(), person.header("content-type")), (401, "text/plain; charset=utf-8"));
    assert!(person.text.contains("used already"), "{}", person.text);
    assert_eq!(Reply::to(world.anonymous(Method::GET, "/login")).await.status, 401);

    let cookie = cookie.split(';').next().unwrap();
    let session = Reply::to(world.anonymous(Method::GET, "/v1/sessions").header("cookie", cookie)).await;
    assert_eq!(session.status, 200);
    world.stop().await;
}

#[actix_web::test]
async fn a_cookie_of_a_public_url_with_tls_travels_with_tls_only() {
    let world = World::with(optio_store::MemoryJournal::new(), Some("https://codex.example.org/")).await;
    let link = world.web.login_link(&world.base);
    let reply = Reply::to(world.anonymous(Method::GET, link.strip_prefix(&world.base).unwrap())).await;
    assert!(reply.header("set-cookie").contains("Secure"));
    let host = world.request(Method::GET, "/v1/sessions").header("host", "codex.example.org");
    assert_eq!(Reply::to(host).await.status, 200);
    let more = Reply::to(world.request(Method::POST, "/v1/login-links")).await;
    assert!(more.json()["url"].as_str().unwrap().starts_with("https://codex.example.org/login?ticket="));
    world.stop().await;
}

#[actix_web::test]
async fn the_token_makes_another_link_and_a_cookie_does_not() {
    let world = World::start().await;
    let made = Reply::to(world.request(Method::POST, "/v1/login-links")).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let url = made.json()["url"].as_str().unwrap().to_owned();
    let opened = Reply::to(world.anonymous(Method::GET, url.strip_prefix(&world.base).unwrap())).await;
    assert_eq!(opened.status, StatusCode::SEE_OTHER);
    let cookie = world.cookie().await;
    let browser = world.anonymous(Method::POST, "/v1/login-links").header("origin", &world.base);
    assert_eq!(Reply::to(browser.header("cookie", cookie)).await.problem(), (403, "forbidden".to_owned()));
    world.stop().await;
}

#[actix_web::test]
async fn a_name_that_is_not_ours_is_refused_before_any_route() {
    let world = World::start().await;
    for path in ["/healthz", "/", "/login", "/v1/sessions", "/nothing"] {
        for host in ["evil.test", "127.0.0.1", "localhost:1", "127.0.0.1.evil.test"] {
            let reply = Reply::to(world.request(Method::GET, path).header("host", host)).await;
            assert_eq!(reply.problem(), (421, "bad_host".to_owned()), "{host} {path}");
        }
    }
    for host in ["", "Host: evil.test", &format!("Host: {0}\r\nHost: {0}", world.authority())] {
        let status = world.raw(&format!("GET /healthz HTTP/1.1\r\n{host}")).await;
        // Without one, and with two, it is no request at all to the parser below us.
        assert!([400, 421].contains(&status), "{status}: {host}");
    }
    let ours = format!("Host: {}", world.authority());
    assert_eq!(world.raw(&format!("GET http://evil.test/healthz HTTP/1.1\r\n{ours}")).await, 421);
    assert_eq!(world.raw(&format!("GET /healthz HTTP/1.1\r\n{ours}")).await, 200);
    // What a proxy says about the name is anybody's word.
    let forwarded = world.request(Method::GET, "/healthz").header("host", "evil.test");
    let forwarded = forwarded
        .header("x-forwarded-host", world.authority())
        .header("forwarded", format!("host={}", world.authority()));
    assert_eq!(Reply::to(forwarded).await.status, 421);
    let local = world.base.replace("http://127.0.0.1", "localhost");
    assert_eq!(Reply::to(world.request(Method::GET, "/v1/hosts").header("host", local)).await.status, 200);
    world.stop().await;
}

#[actix_web::test]
async fn no_page_but_ours_changes_anything() {
    let world = World::start().await;
    let cookie = world.cookie().await;
    let port = world.base.rsplit(':').next().unwrap();
    let foreign = [
        "http://evil.test",
        "null",
        "",
        "http://127.0.0.1",
        "http://localhost:1",
        &format!("http://evil.test:{port}"),
    ];
    for (method, path) in mutating() {
        for origin in foreign {
            let request = world.anonymous(method.clone(), path).header("origin", origin);
            let with_cookie = Reply::to(request.try_clone().unwrap().header("cookie", &cookie)).await;
            assert_eq!(with_cookie.problem(), (403, "forbidden".to_owned()), "{method} {path} {origin:?}");
            let with_token = Reply::to(request.bearer_auth(common::TOKEN)).await;
            assert_eq!(with_token.problem(), (403, "forbidden".to_owned()), "{method} {path} {origin:?}");
        }
        // A browser that sends no Origin says where it comes from, or is not believed.
        for site in [None, Some("none"), Some("same-site"), Some("cross-site")] {
            let mut request = world.anonymous(method.clone(), path).header("cookie", &cookie);
            if let Some(site) = site {
                request = request.header("sec-fetch-site", site);
            }
            assert_eq!(
                Reply::to(request).await.problem(),
                (403, "forbidden".to_owned()),
                "{method} {path} {site:?}"
            );
        }
    }
    world.stop().await;
}

#[actix_web::test]
async fn our_page_with_its_cookie_is_let_through() {
    let world = World::start().await;
    let cookie = world.cookie().await;
    let body = json!({ "mode": "conversation", "instructions": "x" });
    let create = || world.anonymous(Method::POST, "/v1/sessions").header("cookie", &cookie).json(&body);
    let with_origin = create().header("origin", &world.base).header("sec-fetch-site", "same-origin");
    assert_eq!(Reply::to(with_origin).await.status, StatusCode::CREATED);
    assert_eq!(Reply::to(create().header("sec-fetch-site", "same-origin")).await.status, StatusCode::CREATED);
    let localhost = create().header("origin", world.base.replace("127.0.0.1", "localhost"));
    assert_eq!(Reply::to(localhost).await.status, StatusCode::CREATED);
    world.stop().await;
}

#[actix_web::test]
async fn another_port_of_this_machine_cannot_follow_the_events_with_our_cookie() {
    let world = World::start().await;
    let cookie = world.cookie().await;
    let events = || world.anonymous(Method::GET, "/v1/events").header("cookie", &cookie);
    let foreign = events().header("accept", "text/event-stream").header("origin", "http://localhost:1");
    assert_eq!(Reply::to(foreign).await.problem(), (403, "forbidden".to_owned()));
    let tag = events().header("sec-fetch-site", "same-site");
    assert_eq!(Reply::to(tag).await.problem(), (403, "forbidden".to_owned()));
    assert_eq!(Reply::to(events()).await.status, 200);
    world.stop().await;
}

#[actix_web::test]
async fn a_simple_post_of_a_foreign_page_is_no_request_of_ours() {
    let world = World::start().await;
    let body = r#"{"mode":"conversation","instructions":"x"}"#;
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
    {
        let request = world.request(Method::POST, "/v1/sessions").header("content-type", kind).body(body);
        assert_eq!(Reply::to(request).await.problem(), (415, "unsupported_media_type".to_owned()), "{kind}");
    }
    let untyped = world.request(Method::POST, "/v1/sessions").body(body);
    assert_eq!(Reply::to(untyped).await.status, 415);
    assert_eq!(world.get("/v1/sessions").await.json()["data"], json!([]));
    world.stop().await;
}

#[actix_web::test]
async fn every_answer_carries_the_headers_that_guard_the_page() {
    let world = World::start().await;
    for path in ["/", "/healthz", "/nothing", "/v1/sessions", "/v1/events"] {
        let reply = world.get(path).await;
        let policy = reply.header("content-security-policy");
        for rule in ["default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"]
        {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("referrer-policy"), "no-referrer");
        assert!(!reply.headers.contains_key("access-control-allow-origin"));
    }
    let preflight = world.anonymous(Method::OPTIONS, "/v1/sessions").header("origin", "http://evil.test");
    let preflight = Reply::to(preflight.header("access-control-request-method", "POST")).await;
    assert!(!preflight.status.is_success());
    assert!(!preflight.headers.contains_key("access-control-allow-origin"));
    world.stop().await;
}

#[actix_web::test]
async fn a_request_id_is_echoed_or_minted() {
    let world = World::start().await;
    let named = Reply::to(world.request(Method::GET, "/v1/sessions").header("x-request-id", "abc-1")).await;
    assert_eq!(named.header("x-request-id"), "abc-1");
    for bad in ["", "two words", &"x".repeat(129)] {
        let minted = Reply::to(world.request(Method::GET, "/v1/sessions").header("x-request-id", bad)).await;
        assert!(minted.header("x-request-id").starts_with("req_"), "{bad:?}");
    }
    world.stop().await;
}

#[actix_web::test]
async fn who_only_looks_on_changes_nothing() {
    let world = World::start().await;
    let link = world.post("/v1/login-links", json!({ "role": "viewer" })).await;
    assert_eq!((link.status, link.json()["role"].as_str()), (StatusCode::CREATED, Some("viewer")));
    let path = link.json()["url"].as_str().unwrap().strip_prefix(&world.base).unwrap().to_owned();
    let reply = Reply::to(world.anonymous(Method::GET, &path)).await;
    let cookie = reply.header("set-cookie").split(';').next().unwrap().to_owned();
    let ask = |method: Method, path: &str| {
        let request = world.anonymous(method, path).header("cookie", &cookie);
        Reply::to(request.header("origin", &world.base).header("sec-fetch-site", "same-origin"))
    };
    for (method, path) in mutating().filter(|(_, path)| *path != TICKET) {
        let refused = ask(method.clone(), path).await;
        assert_eq!(refused.problem(), (403, "forbidden".to_owned()), "{method} {path}");
        assert!(refused.text.contains("viewer"), "{}", refused.text);
    }
    for path in ["/v1/sessions", "/v1/seeds", "/v1/hosts", "/v1/hosts/local"] {
        let seen = ask(Method::GET, path).await;
        assert_eq!((seen.status, seen.header("optio-role")), (StatusCode::OK, "viewer"), "{path}");
        assert_eq!(world.get(path).await.header("optio-role"), "operator", "{path}");
    }
    // There is no such session, which is another matter.
    assert_eq!(ask(Method::POST, TICKET).await.problem().0, 404);
    let unknown = world.post("/v1/login-links", json!({ "role": "owner" })).await;
    assert_eq!(unknown.wrong_fields(), ["role"]);
}
