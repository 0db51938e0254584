//! One service and every task of it, in a set that can be let go of at once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::service::Service;
use crate::sessions::Places;
use crate::settings::Settings;

pub(super) struct Life {
    service: Service,
    tasks: Rc<RefCell<Option<LocalSet>>>,
}

impl Life {
    pub(super) async fn start(settings: Settings) -> Self {
        let set = LocalSet::new();
        let (tell, started) = oneshot::channel();
        set.spawn_local(async move {
            let service = Service::start(settings, Places::here()).await;
            // Whoever starts a world waits for it.
            let _ = tell.send(service);
        });
        let tasks = Rc::new(RefCell::new(Some(set)));
        actix_rt::spawn({
            let tasks = tasks.clone();
            poll_fn(move |cx| match tasks.borrow_mut().as_mut() {
                Some(set) => {
                    // A set without tasks may get some again.
                    let _ = Pin::new(set).poll(cx);
                    Poll::Pending
                }
                None => Poll::Ready(()),
            })
        });
        let service = started.await.expect("the service's task lives");
        Self { service: service.expect("a service starts on sound fakes"), tasks }
    }

    pub(super) fn service(&self) -> Service {
        self.service.clone()
    }

    /// Nothing of it runs again. Its tasks are leaked, not dropped: actix runs an actor once more from its drop, and a
    /// killed process does nothing more.
    pub(super) fn kill(self) {
        let tasks = self.tasks.take();
        std::mem::forget(tasks);
        std::mem::forget(self.service);
    }
}
