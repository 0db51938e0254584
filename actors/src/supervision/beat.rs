//! Where a child can be broken between two of its deeds.

use std::time::Duration;

use actix::prelude::*;
use tracing::warn;

use super::ChildKind;
use crate::session::RunContext;

/// How often a child comes through the step `beat` of the fault seam.
const BEAT: Duration = Duration::from_secs(5);

/// Takes a child through the step `beat` every few seconds: a panic there is the child's, an error ends it, and while
/// it hangs the child hears and does nothing.
pub(crate) fn beat<A>(ctx: &mut Context<A>, kind: ChildKind, run: RunContext)
where
    A: Actor<Context = Context<A>>,
{
    ctx.run_interval(BEAT, move |child, ctx| {
        let run = run.clone();
        let beating = async move { run.step(kind, "beat").await };
        ctx.wait(beating.into_actor(child).map(move |beat, _, ctx| {
            if let Err(injected) = beat {
                warn!(%injected, "child stops");
                ctx.stop();
            }
        }));
    });
}
