//! Files of sessions, to be downloaded. They are the agent's words, and it may have written anything: a browser saves them,
//! and never shows them as a page of ours.

use actix_web::http::StatusCode;
use actix_web::http::header::{
    self, Charset, ContentDisposition, DispositionParam, DispositionType, ExtendedValue, HeaderValue,
};
use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};

use crate::Web;
use crate::edge::only;
use crate::error::{Problem, RANGE};
use crate::lists::list;
use crate::query::{Params, id};

/// What a browser may do with a file that somebody opens all the same: nothing.
const SANDBOX: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

/// `GET /v1/sessions/{id}/deliverables`
pub(crate) async fn deliverables(
    web: Data<Web>,
    path: Path<String>,
    params: Params,
) -> Result<HttpResponse, Problem> {
    let files = web.service().deliverables(&id("session", &path)?).await?;
    list(files, params, |file| file.path.clone())
}

/// `GET /v1/sessions/{id}/files/{path}`
pub(crate) async fn download(
    web: Data<Web>,
    request: HttpRequest,
    path: Path<(String, String)>,
    params: Params,
) -> Result<HttpResponse, Problem> {
    params.finish()?;
    let (session, path) = path.into_inner();
    let file = web.service().file(&id("session", &session)?, &path).await?;
    let tag = file.sha256.map(|digest| format!("\"{digest}\""));
    let len = file.content.len();
    let part = match wanted(&request, tag.as_deref()) {
        None => None,
        Some(range) => Some(part_of(range, len).ok_or_else(|| {
            Problem::new(RANGE, format!("the file has {len} bytes, and none of them are in this range"))
        })?),
    };
    let status = if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = HttpResponse::build(status);
    response
        .content_type("application/octet-stream")
        .insert_header(attachment(&file.name))
        .insert_header((header::CONTENT_SECURITY_POLICY, SANDBOX))
        .insert_header((header::CACHE_CONTROL, "private, no-cache"))
        .insert_header((header::ACCEPT_RANGES, "bytes"));
    if let Some(tag) = tag {
        response.insert_header((header::ETAG, tag));
    }
    Ok(match part {
        None => response.body(file.content),
        Some((first, last)) => {
            response.insert_header((header::CONTENT_RANGE, format!("bytes {first}-{last}/{len}")));
            response.body(file.content.slice(first..=last))
        }
    })
}

/// One part of a file, as a header asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// From this byte on, to that one or the end.
    From(usize, Option<usize>),
    /// The last so many.
    Last(usize),
}

/// The part that is asked for. A range that cannot be understood, or several of them, ask for the whole (RFC 9110 §14.2),
/// and so does one of another version of the file.
fn wanted(request: &HttpRequest, tag: Option<&str>) -> Option<Range> {
    let headers = request.headers();
    if headers.contains_key(header::IF_RANGE) && only(headers, &header::IF_RANGE) != tag {
        return None;
    }
    read_range(only(headers, &header::RANGE)?)
}

fn read_range(text: &str) -> Option<Range> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    match (first, last) {
        ("", last) => Some(Range::Last(last.parse().ok()?)),
        (first, "") => Some(Range::From(first.parse().ok()?, None)),
        (first, last) => {
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(Range::From(first, Some(last)))
        }
    }
}

/// The first and the last byte, or nothing if there are none.
fn part_of(range: Range, len: usize) -> Option<(usize, usize)> {
    let end = len.checked_sub(1)?;
    match range {
        Range::From(first, last) => (first <= end).then(|| (first, last.unwrap_or(end).min(end))),
        Range::Last(0) => None,
        Range::Last(count) => Some((len.saturating_sub(count), end)),
    }
}

fn attachment(name: &str) -> ContentDisposition {
    // The old form for old programs: only what needs no quoting in it.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ');
    let simple = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let whole = ExtendedValue {
        charset: Charset::Ext("UTF-8".to_owned()),
        language_tag: None,
        value: name.as_bytes().to_vec(),
    };
    ContentDisposition {
        disposition: DispositionType::Attachment,
        parameters: vec![DispositionParam::Filename(simple), DispositionParam::FilenameExt(whole)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_part_or_the_whole() {
        for (text, wanted) in [
            ("bytes=0-4", Some(Range::From(0, Some(4)))),
            ("bytes=5-", Some(Range::From(5, None))),
            ("bytes=-3", Some(Range::Last(3))),
            ("bytes=4-0", None),
            ("bytes=0-1,3-4", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("lines=0-4", None),
            ("bytes=99999999999999999999999-", None),
        ] {
            assert_eq!(read_range(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_part_lies_within_the_file() {
        assert_eq!(part_of(Range::From(0, Some(4)), 10), Some((0, 4)));
        assert_eq!(part_of(Range::From(5, Some(usize::MAX)), 10), Some((5, 9)));
        assert_eq!(part_of(Range::From(10, None), 10), None);
        assert_eq!(part_of(Range::Last(3), 10), Some((7, 9)));
        assert_eq!(part_of(Range::Last(30), 10), Some((0, 9)));
        assert_eq!(part_of(Range::Last(0), 10), None);
        assert_eq!(part_of(Range::From(0, None), 0), None);
    }

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        let shown = attachment("a\"; x=\"b\r\nSet-Cookie: c=é.md").to_string();
        assert!(shown.starts_with("attachment; filename=\"a__ x__b__Set-Cookie_ c__.md\""), "{shown}");
        assert!(!shown.contains(['\r', '\n']), "{shown}");
    }
}
