//! The client, judged against a tiny service that keeps the contract's promises and one that breaks them.

use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use optio_testkit::{Client, LIMIT};
use serde_json::{Value, json};
use tokio::sync::watch;

/// A session that is whatever the test last said, with one event for each change.
struct World {
    session: watch::Sender<(u64, &'static str)>,
}

async fn service(world: Arc<World>) -> Client {
    let app = move || {
        App::new()
            .app_data(web::Data::from(world.clone()))
            .route("/v1/sessions", web::post().to(create))
            .route("/v1/sessions/{id}", web::get().to(session))
            .route("/v1/sessions/{id}/events", web::get().to(events))
    };
    let server = HttpServer::new(app)
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .expect("loopback has a free port");
    let base = format!("http://{}", server.addrs()[0]);
    actix_web::rt::spawn(server.run());
    Client::new(base, "secret-token")
}

async fn create(request: HttpRequest) -> HttpResponse {
    match request.headers().get("authorization").and_then(|value| value.to_str().ok()) {
        Some("Bearer secret-token") => HttpResponse::Created().json(json!({ "id": "ses_1" })),
        _ => HttpResponse::Unauthorized().content_type("application/problem+json").body(
            json!({ "status": 401, "code": "unauthorized", "retryable": false, "request_id": "r" })
                .to_string(),
        ),
    }
}

async fn session(world: web::Data<World>) -> HttpResponse {
    let (last_event, state) = *world.session.borrow();
    HttpResponse::Ok().json(json!({ "id": "ses_1", "state": state, "last_event": last_event }))
}

async fn events(request: HttpRequest, world: web::Data<World>) -> HttpResponse {
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header("accept") == "text/event-stream" {
        let after: u64 = header("last-event-id").parse().unwrap_or(0);
        let frames =
            (after + 1..=3).map(|seq| format!("event: progress\nid: {seq}\ndata: {{\"seq\":{seq}}}\n\n"));
        return HttpResponse::Ok().content_type("text/event-stream").body(frames.collect::<String>());
    }
    let query = web::Query::<std::collections::HashMap<String, u64>>::from_query(request.query_string());
    let after = query.expect("the client asks with numbers")["after"];
    let mut session = world.session.subscribe();
    let seen = session.wait_for(|(last, _)| *last > after).await.expect("the world outlives its service").0;
    HttpResponse::Ok().json(json!({ "data": [{ "seq": seen }], "next_cursor": null }))
}

fn world(state: &'static str) -> Arc<World> {
    Arc::new(World { session: watch::Sender::new((1, state)) })
}

#[actix_web::test]
async fn a_state_is_waited_for_by_long_poll() {
    let world = world("starting");
    let session = service(world.clone()).await.create(json!({})).await;
    let (idle, ()) = tokio::join!(session.wait_idle(), async {
        for (event, state) in [(2, "working"), (3, "idle")] {
            world.session.send_replace((event, state));
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(idle["state"], "idle");
}

#[actix_web::test]
#[should_panic(expected = "waited until the session is idle, but it ended")]
async fn a_session_that_ends_is_not_waited_for_any_longer() {
    service(world("ended")).await.session("ses_1").wait_idle().await;
}

#[actix_web::test]
async fn a_refusal_is_looked_at_whole() {
    let client = service(world("idle")).await.anonymous();
    let refused = client.send(client.request("POST".parse().expect("a method"), "/v1/sessions")).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (401, "unauthorized"));
}

#[actix_web::test]
#[should_panic(expected = "401 Unauthorized")]
async fn an_unexpected_refusal_fails_the_test() {
    service(world("idle")).await.with_token("wrong").create(json!({})).await;
}

#[actix_web::test]
async fn a_stream_goes_on_after_the_last_event_seen() {
    let session = service(world("idle")).await.session("ses_1");
    let mut all = session.events(None).await;
    let data: Vec<Value> =
        all.drain(LIMIT).await.into_iter().map(|event| event.data["seq"].clone()).collect();
    assert_eq!(data, [1, 2, 3]);

    let mut rest = session.events(Some(2)).await;
    assert_eq!(rest.next(Duration::from_secs(5)).await.id, Some(3));
    assert_eq!(rest.seen(), [3]);
}
