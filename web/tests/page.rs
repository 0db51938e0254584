//! The browser page, or what stands in for it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Reply, World};
use reqwest::Method;

/// Addresses that the page names in its markup.
fn assets(html: &str) -> Vec<&str> {
    let quoted = html.split('"').filter(|text| text.starts_with("/assets/"));
    quoted.collect()
}

#[actix_web::test]
async fn the_page_or_its_absence_is_shown_without_a_login() {
    let world = World::start().await;
    let page = Reply::to(world.anonymous(Method::GET, "/")).await;
    assert_eq!(page.status, 200);
    if page.header("content-type").starts_with("text/plain") {
        // Built with OPTIO_SKIP_UI=1 or without npm.
        assert!(page.text.contains("The API works"), "{}", page.text);
        return world.stop().await;
    }
    assert!(page.header("content-type").starts_with("text/html"));
    assert_eq!(page.header("cache-control"), "no-cache");
    let assets = assets(&page.text);
    assert!(assets.iter().any(|asset| asset.ends_with(".js")), "{assets:?}");
    for asset in assets {
        let file = Reply::to(world.anonymous(Method::GET, asset)).await;
        assert_eq!(file.status, 200, "{asset}");
        let script = asset.ends_with(".js") || asset.ends_with(".css");
        assert_eq!(file.header("cache-control").contains("immutable"), script, "{asset}");
        let tag = file.header("etag");
        let again = world.anonymous(Method::GET, asset).header("if-none-match", tag);
        assert_eq!(Reply::to(again).await.status, 304, "{asset}");
        let stale = world.anonymous(Method::GET, asset).header("if-none-match", "\"other\"");
        assert_eq!(Reply::to(stale).await.text, file.text);
    }
    let kinds = [(".js", "text/javascript"), (".css", "text/css"), (".svg", "image/svg+xml")];
    for asset in self::assets(&page.text) {
        let file = Reply::to(world.anonymous(Method::GET, asset)).await;
        let (_, kind) = kinds.iter().find(|(end, _)| asset.ends_with(end)).unwrap();
        assert!(file.header("content-type").starts_with(kind), "{asset}: {}", file.header("content-type"));
    }
    world.stop().await;
}

#[actix_web::test]
async fn the_page_can_only_be_read() {
    let world = World::start().await;
    let post = Reply::to(world.anonymous(Method::POST, "/")).await;
    assert_eq!(post.problem(), (405, "method_not_allowed".to_owned()));
    let head = Reply::to(world.anonymous(Method::HEAD, "/")).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    world.stop().await;
}
