//! Random lives of one seed: checks, peers, crashes, faults of the store and of the login server, in any order. Whatever
//! happens, whoever is handed the seed gets a token that nobody has spent (INV-19, INV-22, INV-28, INV-29).
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use optio_actors::testing::{World, play};
use optio_codex_protocol::auth;
use optio_oauth::fake::Mode;
use optio_oauth::{LoginServer, RefreshAnswer, Secret};
use optio_store::faulty::{Fault, StoreOp};
use optio_store::{Holder, Leases, SeedId, Seeds, Want};
use proptest::prelude::*;

/// Something that happens.
#[derive(Debug, Clone)]
enum Act {
    /// Somebody asks for a check and waits for the verdict.
    Verify,
    /// Somebody asks for a check; a moment passes.
    Begin,
    /// A session wants the seed and finds none that is free.
    Launch,
    /// The login server answers this way from now on.
    Mode(Mode),
    /// The next call of this operation fails this way.
    Fail(StoreOp, Fault),
    /// The service is killed, the store is whole again, and another service starts.
    Crash,
    /// A lease's life passes.
    Lapse,
    /// The time passes that a dirty seed is left to its last holder.
    Grace,
    /// A peer takes the seed, if it may, refreshes, and gives it back.
    Peer,
    /// The same, but it dies before the store has the new login.
    DyingPeer,
}

fn act() -> impl Strategy<Value = Act> {
    let refused = RefreshAnswer::Refused { status: 503, code: None, retry_after: None };
    let mode = prop_oneof![
        3 => Just(Mode::Grant),
        1 => Just(Mode::LoseAnswer),
        1 => Just(Mode::GrantWithoutRotation),
        1 => Just(Mode::Answer(refused)),
        1 => Just(Mode::Answer(RefreshAnswer::NoAnswer("reset".to_owned()))),
        1 => Just(Mode::Answer(RefreshAnswer::NotSent("refused".to_owned()))),
    ];
    let op = prop::sample::select(vec![
        StoreOp::AcquireForRecovery,
        StoreOp::Load,
        StoreOp::PatchSeed,
        StoreOp::PutSpool,
        StoreOp::SaveCredential,
        StoreOp::ConfirmSpool,
        StoreOp::SpoolEntries,
        StoreOp::Renew,
        StoreOp::Release,
    ]);
    let fault = prop::sample::select(vec![Fault::Error, Fault::Hang, Fault::DoneButError]);
    prop_oneof![
        3 => Just(Act::Verify),
        3 => Just(Act::Begin),
        1 => Just(Act::Launch),
        3 => mode.prop_map(Act::Mode),
        4 => (op, fault).prop_map(|(op, fault)| Act::Fail(op, fault)),
        2 => Just(Act::Crash),
        2 => Just(Act::Lapse),
        1 => Just(Act::Grace),
        1 => Just(Act::Peer),
        1 => Just(Act::DyingPeer),
    ]
}

struct Life {
    world: World,
    seed: SeedId,
}

impl Life {
    async fn begin() -> Self {
        let world = World::new().await;
        let seed = world.seed_in("acme", Some("team")).await;
        Self { world, seed }
    }

    fn token(&self) -> String {
        auth::refresh_token(&self.world.memory.credential(&self.seed).unwrap()).unwrap()
    }

    async fn acquire(&self) -> Option<Holder> {
        let holder = Holder::mint_for("peer");
        let want = Want::Seed(self.seed.clone());
        Leases::acquire(&self.world.memory, &want, &holder).await.unwrap().map(|lease| lease.holder)
    }

    async fn live(&self, act: &Act) {
        let world = &self.world;
        // Two logins that were made at different times say so.
        tokio::time::sleep(Duration::from_secs(1)).await;
        match act {
            // A verdict, a refusal, or no answer in time: all are allowed.
            Act::Verify => drop(world.service().verify_seed(&self.seed).await),
            Act::Begin => {
                let (service, seed) = (world.service(), self.seed.clone());
                drop(actix::spawn(async move { service.verify_seed(&seed).await }));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Act::Launch => {
                // What a launch makes of a store that fails has tests of its own.
                world.faulty_store.heal();
                let id = world.begin(serde_json::json!({ "seed": { "pool": "team" } })).await;
                let view = world.wait(&id, "a start or an end", |view| view.state.name() != "starting").await;
                if view.state.name() == "idle" {
                    self.is_unspent("launched");
                    world.stop(&id).await;
                }
                world.wait_over(&id).await;
            }
            Act::Mode(mode) => world.login_server.mode(mode.clone()),
            Act::Fail(op, fault) => world.faulty_store.fail(*op, 1, *fault),
            Act::Crash => {
                world.crash();
                world.faulty_store.heal();
                world.restart().await;
            }
            Act::Lapse => tokio::time::sleep(Duration::from_secs(61)).await,
            Act::Grace => tokio::time::sleep(Duration::from_secs(601)).await,
            Act::Peer => self.peer(true).await,
            Act::DyingPeer => self.peer(false).await,
        }
    }

    async fn peer(&self, saves: bool) {
        let Some(holder) = self.acquire().await else { return };
        let (files, version) = self.world.memory.load(&self.seed).await.unwrap();
        let old = files.0.values().next().unwrap().clone();
        let answer = self.world.login_server.refresh(&Secret::new(self.token())).await;
        let RefreshAnswer::Granted(tokens) = answer else { return };
        if !saves {
            return;
        }
        let [access, refresh] = [tokens.access_token, tokens.refresh_token];
        let new = auth::NewTokens {
            access_token: access.as_ref().map(Secret::reveal),
            refresh_token: refresh.as_ref().map(Secret::reveal),
            id_token: None,
        };
        let new = auth::refreshed(&old, &new, self.world.clock.now()).unwrap();
        self.world.memory.save_credential(&self.seed, &holder, &version, new.into()).await.unwrap();
        self.world.memory.release(&self.seed, &holder).await.unwrap();
    }

    fn is_unspent(&self, when: &str) {
        let token = self.token();
        assert!(!self.world.login_server.is_spent(&token), "{when}: handed out with {token}, which is spent");
    }

    /// Whoever is handed the seed now gets a token that is good.
    async fn check(&self, when: &str) {
        if let Some(holder) = self.acquire().await {
            self.is_unspent(when);
            self.world.memory.release(&self.seed, &holder).await.unwrap();
        }
    }

    /// Nothing goes wrong any more, so it is found out what the seed is.
    async fn end(&self) {
        self.world.login_server.mode(Mode::Grant);
        self.live(&Act::Crash).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        let verdict = self.world.service().verify_seed(&self.seed).await.unwrap().verdict;
        assert!(matches!(verdict, "alive" | "dead"), "{verdict}");
        if verdict == "alive" {
            assert!(self.acquire().await.is_some());
            self.is_unspent("in the end");
        }
        let log = Seeds::get(&self.world.memory, &self.seed).await.unwrap().unwrap();
        assert!(!log.metadata.contains_key("refreshIntent"), "{log:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_handed_the_seed_gets_a_token_that_nobody_has_spent(acts in prop::collection::vec(act(), 1..16)) {
        play(async move {
            let life = Life::begin().await;
            for (i, act) in acts.iter().enumerate() {
                life.live(act).await;
                life.check(&format!("after {:?}", &acts[..=i])).await;
            }
            life.end().await;
        });
    }
}
