//! On which machine a story happens: one body, told on this machine and on another one.

use std::sync::Arc;

use optio_testkit::{Far, ServerSetup};

/// A machine for sessions.
pub(crate) struct Place(Option<Arc<Far>>);

impl Place {
    /// This machine.
    pub(crate) fn local() -> Self {
        Self(None)
    }

    /// Another one, over SSH.
    pub(crate) async fn ssh() -> Self {
        Self(Some(Far::setup().start().await))
    }

    /// That one.
    pub(crate) fn on(far: &Arc<Far>) -> Self {
        Self(Some(far.clone()))
    }

    /// The service under test, not started yet, whose sessions are on this machine.
    pub(crate) fn service(&self) -> ServerSetup {
        match &self.0 {
            Some(far) => super::service().on(far),
            None => super::service(),
        }
    }
}

/// Makes two tests of a story, a function that takes its [`Place`]: `NAME::local` and `NAME::ssh`.
macro_rules! on_each_host {
    ($story:ident) => {
        mod $story {
            use crate::common::place::Place;

            #[actix::test]
            async fn local() {
                super::$story(Place::local()).await;
            }

            #[actix::test]
            async fn ssh() {
                super::$story(Place::ssh().await).await;
            }
        }
    };
}
pub(crate) use on_each_host;
