//! Waiting for a condition instead of sleeping.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// The pause between two looks: short against what is waited for, long against what a look costs.
const PAUSE: Duration = Duration::from_millis(20);

/// What one look at the world can say: it is so, or not yet, and what was seen instead.
pub trait Look {
    /// What is known once it is so.
    type Found;

    /// Splits the look into what was found and what was seen in its place.
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Look for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Debug> Look for Result<T, E> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.map_err(|seen| format!("{seen:?}"))
    }
}

/// Looks again and again until it is so, and returns what was found. `look` may answer a `bool`, an `Option`, or a
/// `Result` whose error is what was seen instead.
///
/// # Panics
/// With `what` and the last thing seen when it is still not so after `limit`. A look that itself hangs counts too.
pub async fn wait_until<F, Fut, L>(what: impl Display, limit: Duration, mut look: F) -> L::Found
where
    F: FnMut() -> Fut,
    Fut: Future<Output = L>,
    L: Look,
{
    let deadline = Instant::now() + limit;
    let mut last = "nothing, the first look did not return".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, look()).await.map(Look::found) {
            Ok(Ok(found)) => return found,
            Ok(Err(seen)) => last = seen,
            Err(_) => panic!("waited {limit:?} until {what}; last seen: {last}"),
        }
        if Instant::now() + PAUSE >= deadline {
            panic!("waited {limit:?} until {what}; last seen: {last}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_becomes_so_is_returned() {
        let looks = Cell::new(0);
        let found = wait_until("the third look", Duration::from_secs(5), || async {
            looks.set(looks.get() + 1);
            (looks.get() == 3).then_some("here")
        })
        .await;
        assert_eq!((found, looks.get()), ("here", 3));
    }

    #[tokio::test]
    #[should_panic(expected = "until pigs fly; last seen: \"on the ground\"")]
    async fn what_never_becomes_so_is_named_with_the_last_sight() {
        wait_until("pigs fly", Duration::from_millis(60), || async { Err::<(), _>("on the ground") }).await;
    }

    #[tokio::test]
    #[should_panic(expected = "the first look did not return")]
    async fn a_look_that_hangs_ends_at_the_limit() {
        wait_until("it answers", Duration::from_millis(60), std::future::pending::<bool>).await;
    }
}
