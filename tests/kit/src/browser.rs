//! A real browser: headless Chromium, steered through its driver.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::json;
use tempfile::TempDir;

use crate::LIMIT;
use crate::procs::descendants;
use crate::wait::wait_until;

/// A window with one page. It closes when dropped.
pub struct Browser {
    client: Client,
    _driver: Driver,
    _profile: TempDir,
}

impl Browser {
    /// Opens a window of this size, in pixels, with a profile of its own.
    ///
    /// # Panics
    /// With what to do, when the driver is not there or does not answer.
    pub async fn open(width: u32, height: u32) -> Self {
        let profile = tempfile::tempdir().expect("the temp directory is writable");
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts: run `make setup-test`");
        // Owned from here on, so that a start that fails leaves no driver running.
        let driver = Driver(driver);
        let url = format!("http://127.0.0.1:{port}");
        let capabilities = capabilities(profile.path(), width, height);
        let client = wait_until("the browser opens", LIMIT, || async {
            ClientBuilder::new(HttpConnector::new())
                .capabilities(capabilities.clone())
                .connect(&url)
                .await
                .ok()
        })
        .await;
        Self { client, _driver: driver, _profile: profile }
    }

    /// Goes to an address.
    pub async fn go(&self, url: &str) {
        self.client.goto(url).await.unwrap_or_else(|problem| panic!("the browser goes to {url}: {problem}"));
    }

    /// Where it is.
    pub async fn address(&self) -> String {
        self.client.current_url().await.expect("a page has an address").to_string()
    }

    /// Waits until the page shows this text.
    pub async fn sees(&self, text: &str) {
        wait_until(format!("the page shows {text:?}"), LIMIT, || async {
            let shown = self.text().await;
            if shown.contains(text) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    /// Everything the page shows.
    pub async fn text(&self) -> String {
        let body = self.client.find(Locator::Css("body")).await;
        match body {
            Ok(body) => body.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Clicks the button or link with this label, once it can be clicked.
    pub async fn click(&self, label: &str) {
        let path = format!("//*[self::button or self::a or self::summary][normalize-space(.)={label:?}]");
        wait_until(format!("{label:?} can be clicked"), LIMIT, || async {
            let found = self.client.find(Locator::XPath(&path)).await?;
            if !found.is_enabled().await? {
                return Ok(false);
            }
            found.click().await.map(|()| true)
        })
        .await;
    }

    /// Types into the field with this id or accessible name, replacing what is there.
    pub async fn fill(&self, field: &str, text: &str) {
        let path = format!("//*[@id={field:?} or @aria-label={field:?}]");
        wait_until(format!("{field:?} takes text"), LIMIT, || async {
            let found = self.client.find(Locator::XPath(&path)).await?;
            found.clear().await?;
            found.send_keys(text).await
        })
        .await;
    }

    /// Loads the page again, and is outside of any frame.
    pub async fn reload(&self) {
        self.client.refresh().await.expect("a page can be loaded again");
    }

    /// Goes into the frame with this title: what is seen and typed from here on is there, until the page is another one.
    pub async fn enter(&self, title: &str) {
        let path = format!("//iframe[@title={title:?}]");
        wait_until(format!("there is a frame {title:?}"), LIMIT, || async {
            self.client.find(Locator::XPath(&path)).await?.enter_frame().await
        })
        .await;
    }

    /// Presses keys, one after the other, wherever the focus is; `\n` is Enter.
    pub async fn press(&self, keys: &str) {
        let mut actions = KeyActions::new("keyboard".to_owned());
        for key in keys.chars() {
            let value = if key == '\n' { '\u{E007}' } else { key };
            actions = actions.then(KeyAction::Down { value }).then(KeyAction::Up { value });
        }
        self.client.perform_actions(actions).await.expect("keys can be pressed");
    }

    /// Runs a script and answers what it returns.
    pub async fn run(&self, script: &str) -> serde_json::Value {
        self.client.execute(script, Vec::new()).await.expect("the script runs")
    }

    /// Saves what the window shows as a PNG.
    pub async fn screenshot(&self, file: &Path) {
        let png = self.client.screenshot().await.expect("the window can be seen");
        std::fs::write(file, png).expect("the picture's place is writable");
    }
}

/// The driver and the browser it started, both gone when dropped. A driver that is killed leaves its browser behind.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let browser = descendants(self.0.id().cast_signed());
        // Either may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
        for process in browser {
            process.kill_9();
        }
    }
}

/// Chromium as root in a sandbox without a network: no sandbox of its own, nothing fetched in the background.
fn capabilities(profile: &Path, width: u32, height: u32) -> serde_json::Map<String, serde_json::Value> {
    let args = [
        "--headless".to_owned(),
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-quic".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--no-first-run".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--disable-sync".to_owned(),
        format!("--user-data-dir={}", profile.display()),
        format!("--window-size={width},{height}"),
    ];
    let mut capabilities = serde_json::Map::new();
    capabilities.insert("goog:chromeOptions".to_owned(), json!({ "args": args }));
    capabilities
}

/// A port that was free a moment ago; the driver says no to 0.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
