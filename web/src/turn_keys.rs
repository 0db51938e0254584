//! Messages that must not be delivered twice: what each `Idempotency-Key` of a turn was answered with.
//!
//! Kept in memory: a key guards a request that is sent again within minutes because its answer was lost. After a
//! restart it is forgotten.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use optio_actors::conversation::Delivered;
use tokio::sync::OnceCell;

use crate::error::{IDEMPOTENCY_CONFLICT, INTERNAL, Problem};

/// Keys remembered; the oldest goes first. At about 300 bytes each.
const KEPT: usize = 4_096;

type Answer = Arc<OnceCell<Delivered>>;

struct Known {
    key: String,
    digest: String,
    answer: Answer,
}

/// The keys of this process.
#[derive(Default)]
pub(crate) struct TurnKeys(Mutex<VecDeque<Known>>);

impl TurnKeys {
    /// Delivers, unless this key was delivered before or is on its way; then its answer is this one's too. A delivery
    /// that failed may be tried again, one without an answer in time too: what became of it is unknown.
    pub(crate) async fn once(
        &self,
        key: String,
        digest: String,
        delivering: impl Future<Output = Result<Delivered, Problem>> + 'static,
    ) -> Result<Delivered, Problem> {
        let answer = self.answer_of(key, digest)?;
        // In a task of its own: a caller that hangs up must not leave a message delivered and its key unused.
        let task = actix_web::rt::spawn(async move { answer.get_or_try_init(|| delivering).await.cloned() });
        task.await
            .map_err(|_| Problem::new(INTERNAL, "the delivery broke off; whether it was done is unknown"))?
    }

    fn answer_of(&self, key: String, digest: String) -> Result<Answer, Problem> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.iter().find(|known| known.key == key) {
            return match known.digest == digest {
                true => Ok(known.answer.clone()),
                false => {
                    Err(Problem::new(IDEMPOTENCY_CONFLICT, "the key was used before with another message"))
                }
            };
        }
        if known.len() >= KEPT {
            known.pop_front();
        }
        let answer = Answer::default();
        known.push_back(Known { key, digest, answer: answer.clone() });
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::rc::Rc;

    use optio_actors::conversation::DeliveredAs;

    use super::*;

    fn delivery(count: &Rc<Cell<u32>>) -> impl Future<Output = Result<Delivered, Problem>> + 'static {
        let count = count.clone();
        async move {
            tokio::task::yield_now().await;
            count.set(count.get() + 1);
            Ok(Delivered { turn_id: Some(count.get().to_string()), delivered_as: DeliveredAs::New })
        }
    }

    #[actix_web::test]
    async fn a_key_delivers_once_even_while_it_is_on_its_way() {
        let (keys, count) = (TurnKeys::default(), Rc::default());
        let once = || keys.once("k".to_owned(), "d".to_owned(), delivery(&count));
        let (one, two) = tokio::join!(once(), once());
        let three = once().await;
        assert_eq!(count.get(), 1);
        for answer in [one, two, three] {
            assert_eq!(answer.unwrap().turn_id.as_deref(), Some("1"));
        }
        assert!(keys.once("k".to_owned(), "other".to_owned(), delivery(&count)).await.is_err());
        assert_eq!(count.get(), 1);
    }

    #[actix_web::test]
    async fn a_delivery_that_failed_may_be_tried_again() {
        let (keys, count) = (TurnKeys::default(), Rc::default());
        let failing = async { Err(Problem::new(INTERNAL, "no")) };
        assert!(keys.once("k".to_owned(), "d".to_owned(), failing).await.is_err());
        assert!(keys.once("k".to_owned(), "d".to_owned(), delivery(&count)).await.is_ok());
    }

    #[actix_web::test]
    async fn a_caller_that_hangs_up_has_delivered_all_the_same() {
        let (keys, count) = (TurnKeys::default(), Rc::default());
        let mut hung_up = Box::pin(keys.once("k".to_owned(), "d".to_owned(), delivery(&count)));
        assert!(futures_util::poll!(&mut hung_up).is_pending());
        drop(hung_up);
        let answer = keys.once("k".to_owned(), "d".to_owned(), delivery(&count)).await.unwrap();
        assert_eq!((count.get(), answer.turn_id.as_deref()), (1, Some("1")));
    }
}
