//! The long-lived shell itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::hand::{Answer, Hand, Question, Words};
use super::super::shells::Lane;
use super::Here;
use crate::{HostError, Result};

const PATIENCE: Duration = Duration::from_secs(10);

fn hand() -> (Hand, Arc<Here>, tempfile::TempDir) {
    let temp = tempfile::tempdir().unwrap();
    let here = Here::new(temp.path());
    (Hand::new(here.clone(), Lane::Control), here, temp)
}

async fn ask(hand: &Hand, words: Words, limit: Duration) -> Result<Answer> {
    let question = Question { what: "ask".into(), words, payload: Bytes::new(), body: 1 << 16, limit };
    hand.ask(question).await
}

#[test]
fn any_word_without_nul_comes_through_as_it_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (hand, ..) = hand();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    runner
        .run(&prop::collection::vec(prop_oneof![1u8..=255, Just(b'\n'), Just(b'\'')], 0..48), |word| {
            let words = Words::new("printf %s").word(&word).unwrap();
            let answer = runtime.block_on(ask(&hand, words, PATIENCE)).unwrap();
            prop_assert_eq!(answer.body, word);
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn each_gets_its_own_answer_from_one_shell() {
    let (hand, here, _temp) = hand();
    let asking = (0..200).map(|number| {
        let hand = &hand;
        async move {
            let words = Words::new("printf %s").number(number);
            let answer = ask(hand, words, PATIENCE).await.unwrap();
            assert_eq!(answer.body, number.to_string().into_bytes());
        }
    });
    futures_util::future::join_all(asking).await;
    assert_eq!(here.started.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_question_that_hangs_costs_the_shell_and_not_the_next_question() {
    let (hand, here, _temp) = hand();
    let hung = ask(&hand, Words::new("sleep 60"), Duration::from_millis(300));
    let behind = ask(&hand, Words::new("answer ok"), PATIENCE);
    let (hung, behind) = tokio::join!(biased; hung, behind);
    assert!(matches!(hung, Err(HostError::TimedOut { .. })));
    assert!(matches!(behind, Err(HostError::Unreachable { .. })));
    assert_eq!(ask(&hand, Words::new("answer ok"), PATIENCE).await.unwrap().word, "ok");
    assert_eq!(here.started.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_shell_that_is_killed_is_replaced() {
    let (hand, here, _temp) = hand();
    let killed = ask(&hand, Words::new("kill -9 $$"), PATIENCE).await;
    assert!(matches!(killed, Err(HostError::Unreachable { .. })));
    assert_eq!(ask(&hand, Words::new("answer ok"), PATIENCE).await.unwrap().word, "ok");
    assert_eq!(here.started.load(Ordering::SeqCst), 2);
}

/// A payload that a failing question leaves behind would be taken for questions.
#[tokio::test]
async fn bytes_that_look_like_a_question_are_not_one() {
    let (hand, _here, temp) = hand();
    let made = temp.path().join("made");
    let payload = format!("+mkdir {}\n=x y\n=\n", made.display());
    let question = Question {
        what: "ask".into(),
        words: Words::new("answer ok"),
        payload: payload.into(),
        body: 0,
        limit: PATIENCE,
    };
    assert_eq!(hand.ask(question).await.unwrap().word, "ok");
    // Whatever was made of it has been done when the next answer comes.
    let _ = ask(&hand, Words::new("answer ok"), PATIENCE).await;
    assert!(!made.exists());
}
