//! Downloading one file of a release into the service's own directory: once, resumed where it was cut, bounded, checked.

mod answers;
mod files;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{ETAG, HeaderMap, IF_RANGE, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

use self::answers::{begins_at, content_length, follow, is_strong, why};
use self::files::{disk, hash, length, make_private, remove, remove_part, validator};
use super::percents::Percents;
use super::release::{Asset, Sha256Sum};
use super::{Progress, ProvisionError, Tell};

/// Who asks.
const USER_AGENT: &str = concat!("optio-codex/", env!("CARGO_PKG_VERSION"));

/// Limit of coming by a connection, names and TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Longest silence of a server that is sending. A slow one may take its time as long as something comes.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Tries in a row that bring less than [`GAIN`]; each takes up where the one before it was cut.
const TRIES: u32 = 4;

/// Bytes that make a try worth another one: a link that breaks every few megabytes gets there in the end.
const GAIN: u64 = 1 << 20;

/// The pause before the second try; doubles with each.
const PAUSE: Duration = Duration::from_millis(200);

/// The service's own directory of downloaded files, and the way to more.
pub(super) struct Fetcher {
    dir: PathBuf,
    client: Result<Client, String>,
    /// One at a time for each file: two hosts may want the same one.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What one try came to.
enum Try {
    Whole,
    /// It was cut or refused, and another try may bring more.
    Again(String),
}

impl Fetcher {
    /// Downloads go to `dir`, which belongs to this service alone and is made when the first one begins. Honours the proxy
    /// variables of the environment.
    pub(super) fn new(dir: PathBuf) -> Self {
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .redirect(Policy::custom(follow))
            .build();
        Self { dir, client: client.map_err(|problem| why(&problem)), turns: Mutex::default() }
    }

    /// Brings a file and answers where it is. What is there is checked against its pin each time it is used. `sum` is what
    /// it must hash to.
    pub(super) async fn fetch(
        &self,
        asset: &Asset,
        sum: Sha256Sum,
        tell: Tell<'_>,
    ) -> Result<PathBuf, ProvisionError> {
        let turn = self.turn(asset);
        let _turn = turn.lock().await;
        let (whole, part) = self.paths(asset);
        make_private(&self.dir).await.map_err(|source| disk("make", &self.dir, source))?;
        match hash(&whole).await {
            Ok(found) if found == sum => return Ok(whole),
            Ok(_) => remove(&whole).await?,
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => {}
            Err(problem) => return Err(disk("read", &whole, problem)),
        }
        let message = format!("downloading {} {} ({})", asset.tool, asset.version, asset.name);
        tracing::info!(url = asset.shown(), "download begins");
        tell(Progress { percent: None, message: message.clone() });

        let mut from_before = length(&part).await > 0;
        loop {
            self.download(asset, &part, &|percent| {
                tell(Progress { percent: Some(percent), message: message.clone() })
            })
            .await?;
            let found = hash(&part).await.map_err(|source| disk("read", &part, source))?;
            if found == sum {
                break;
            }
            remove_part(&part).await?;
            // What an earlier process left may be of another file; that is found out once.
            if !std::mem::take(&mut from_before) {
                return Err(ProvisionError::Mismatch {
                    asset: asset.name.clone(),
                    url: asset.shown(),
                    expected: Box::new(sum),
                    found: Box::new(found),
                    setting: asset.setting(),
                });
            }
        }
        fs::rename(&part, &whole).await.map_err(|source| disk("rename", &part, source))?;
        remove(&validator(&part)).await?;
        self.forget_older(asset).await;
        tracing::info!(file = %whole.display(), "download is whole and as it was released");
        Ok(whole)
    }

    /// Removes what there is of a download that nobody waits for, unless somebody else has gone on with it.
    pub(super) async fn discard(&self, asset: &Asset) {
        let turn = self.turn(asset);
        let Ok(_turn) = turn.try_lock() else { return };
        let (_, part) = self.paths(asset);
        if let Err(problem) = remove_part(&part).await {
            tracing::warn!(%problem, "begun download is left");
        }
    }

    fn turn(&self, asset: &Asset) -> Arc<tokio::sync::Mutex<()>> {
        // Nothing under this lock can panic half way. As many entries as there are files of the releases: four.
        self.turns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(asset.file_name())
            .or_default()
            .clone()
    }

    fn paths(&self, asset: &Asset) -> (PathBuf, PathBuf) {
        let name = asset.file_name();
        (self.dir.join(&name), self.dir.join(format!("{name}.part")))
    }

    /// Fills `part` to its end, in as many tries as bring something.
    async fn download(
        &self,
        asset: &Asset,
        part: &Path,
        tell: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<(), ProvisionError> {
        let mut failures = 0;
        let mut percents = Percents::default();
        loop {
            let before = length(part).await;
            let problem = match self.attempt(asset, part, &mut percents, tell).await? {
                Try::Whole => return Ok(()),
                Try::Again(problem) => problem,
            };
            let gained = length(part).await.saturating_sub(before);
            failures = if gained >= GAIN { 1 } else { failures + 1 };
            if failures >= TRIES {
                return Err(cut_off(asset, problem));
            }
            tracing::warn!(url = asset.shown(), problem, gained, "download was cut, it is tried again");
            tokio::time::sleep(PAUSE * 2u32.pow(failures - 1)).await;
        }
    }

    async fn attempt(
        &self,
        asset: &Asset,
        part: &Path,
        percents: &mut Percents,
        tell: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<Try, ProvisionError> {
        let client = self.client.as_ref().map_err(|problem| failed(asset, problem.clone()))?;
        let url = Url::parse(&asset.url)
            .map_err(|problem| failed(asset, format!("the address is none: {problem}")))?;
        let mut have = length(part).await;
        let mut request = client.get(url);
        // Without a strong validator nobody can say that the rest belongs to what is here.
        match fs::read_to_string(validator(part)).await {
            Ok(etag) if have > 0 && is_strong(&etag) => {
                request = request.header(RANGE, format!("bytes={have}-")).header(IF_RANGE, etag);
            }
            _ => have = 0,
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(problem) if problem.is_builder() || problem.is_redirect() => {
                return Err(failed(asset, why(&problem)));
            }
            Err(problem) => return Ok(Try::Again(why(&problem))),
        };
        match answer.status() {
            StatusCode::OK => have = 0,
            StatusCode::PARTIAL_CONTENT if begins_at(answer.headers(), have) => {}
            // The file there has changed, or ours is longer: from the beginning.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                remove_part(part).await?;
                return Ok(Try::Again(
                    "the server sends another part than the one that is missing".to_owned(),
                ));
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Try::Again(format!("the server answered {status}")));
            }
            status => return Err(failed(asset, format!("the server answered {status}"))),
        }
        self.take(asset, answer, part, have, percents, tell).await
    }

    /// Writes an answer behind the `have` bytes that are here.
    async fn take(
        &self,
        asset: &Asset,
        answer: Response,
        part: &Path,
        mut have: u64,
        percents: &mut Percents,
        tell: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<Try, ProvisionError> {
        let too_large = |len: u64| {
            failed(
                asset,
                format!("it has {len} bytes, more than the {} that such a file may have", asset.limit),
            )
        };
        let total = content_length(answer.headers()).map(|rest| have.saturating_add(rest));
        if let Some(total) = total.filter(|total| *total > asset.limit) {
            return Err(too_large(total));
        }
        let mut file = self.open(part, have, answer.headers()).await?;
        let broken = |source| disk("write", part, source);
        let mut body = answer.bytes_stream();
        let ended = loop {
            match body.next().await {
                None => break Try::Whole,
                Some(Err(problem)) => break Try::Again(why(&problem)),
                Some(Ok(chunk)) => {
                    have += chunk.len() as u64;
                    if have > asset.limit {
                        drop(file);
                        remove_part(part).await?;
                        return Err(too_large(have));
                    }
                    file.write_all(&chunk).await.map_err(broken)?;
                    if let Some(percent) = percents.advance(have, total) {
                        tell(percent);
                    }
                }
            }
        };
        file.sync_all().await.map_err(broken)?;
        Ok(ended)
    }

    /// Opens what there is of the file. The validator of another answer goes before the bytes that it is not about.
    async fn open(&self, part: &Path, have: u64, headers: &HeaderMap) -> Result<File, ProvisionError> {
        let broken = |source| disk("write", part, source);
        if have > 0 {
            return OpenOptions::new().append(true).open(part).await.map_err(broken);
        }
        let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).filter(|etag| is_strong(etag));
        let file = File::create(part).await.map_err(broken)?;
        match etag {
            Some(etag) => fs::write(validator(part), etag).await.map_err(broken)?,
            None => remove(&validator(part)).await?,
        }
        Ok(file)
    }

    /// Removes the files of other versions: nobody comes back to them.
    async fn forget_older(&self, asset: &Asset) {
        let Ok(mut entries) = fs::read_dir(&self.dir).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(&asset.name) && !name.starts_with(&asset.file_name()) {
                // One that stays takes room and nothing else.
                let _ = fs::remove_file(entry.path()).await;
            }
        }
    }
}

fn failed(asset: &Asset, why: String) -> ProvisionError {
    ProvisionError::Download { url: asset.shown(), why, setting: asset.setting(), transient: false }
}

fn cut_off(asset: &Asset, why: String) -> ProvisionError {
    ProvisionError::Download { url: asset.shown(), why, setting: asset.setting(), transient: true }
}
