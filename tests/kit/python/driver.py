"""Drives the real optio-codex package on behalf of a test: one request a line on stdin, one answer a line on stdout.

    driver.py URI DATABASE PREFIX

A request is a JSON object: "op" names a method of Peer, the rest are its arguments. An answer is {"ok": result}, or
{"error": {"type": ..., "message": ...}} with the exception that the package raised. Files travel as text, ids in hex,
stored documents as MongoDB's canonical extended JSON.

Everything a method does, the package does: nothing of its behaviour is imitated here. Two things differ from a running
engine. The issuer's discovery document, which is not on loopback, is answered here with one that says "reachable". And
the credential watcher looks several times a second instead of every ten.
"""

import asyncio
import json
import logging
import os
import sys
from types import SimpleNamespace

from bson import ObjectId, json_util
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorGridFSBucket

from optio_agents import seeds
from optio_codex import cred_watcher, seed_manifest, session, snapshots, verify
from optio_core.context import ProcessContext
from optio_host.host import LocalHost

WATCH_INTERVAL_S = 0.1
CANONICAL = json_util.CANONICAL_JSON_OPTIONS


class Peer:
    def __init__(self, uri, database, prefix):
        self.db = AsyncIOMotorClient(uri)[database]
        self.prefix = prefix
        self.seeds = {"prefix": prefix, "suffix": seed_manifest.CODEX_SEED_SUFFIX}
        self.binding = SimpleNamespace(db=self.db, prefix=prefix)
        self.sessions = {}
        self.watchers = {}

    # --- sessions: a process context and a local host, without an engine ---

    async def open_session(self, process_id, taskdir):
        """Makes a session whose workdir is TASKDIR/workdir, which is emptied."""
        host = LocalHost(taskdir)
        await host.connect()
        await host.setup_workdir()
        oid = ObjectId()
        context = ProcessContext(
            process_oid=oid,
            process_id=process_id,
            root_oid=oid,
            depth=0,
            params={},
            services={},
            db=self.db,
            prefix=self.prefix,
            cancellation_flag=asyncio.Event(),
            child_counter={"next": 0},
        )
        self.sessions[process_id] = (context, host)
        return {"process_oid": str(oid), "workdir": host.workdir}

    async def cancelled(self, process_id):
        return not self.sessions[process_id][0].should_continue()

    # --- seeds ---

    async def capture(self, process_id):
        context, host = self.sessions[process_id]
        if not await cred_watcher.capture_gate_ok(host):
            return None
        return await seeds.capture_seed(
            context,
            host,
            manifest=seed_manifest.CODEX_SEED_MANIFEST,
            suffix=seed_manifest.CODEX_SEED_SUFFIX,
            encrypt=None,
        )

    async def merge(self, process_id, seed):
        """Plants a seed in a session's home, as at a fresh start."""
        context, host = self.sessions[process_id]
        await seeds.merge_seed(
            context,
            host,
            seed_id=seed,
            manifest=seed_manifest.CODEX_SEED_MANIFEST,
            suffix=seed_manifest.CODEX_SEED_SUFFIX,
            decrypt=None,
        )
        return await cred_watcher.cred_fingerprint(host)

    async def save_back(self, process_id, seed, baseline):
        context, host = self.sessions[process_id]
        return await cred_watcher.save_back_if_changed(
            context, host, seed_id=seed, baseline=baseline, encrypt=None, decrypt=None
        )

    async def overwrite(self, seed, member, content):
        await seeds.overwrite_seed_member(
            self.db,
            **self.seeds,
            seed_id=seed,
            member_path=member,
            content=content.encode(),
            encrypt=None,
            decrypt=None,
        )

    async def list(self):
        rows = await seed_manifest.list_seeds(self.binding)
        return [row["seedId"] for row in rows]

    async def list_pool(self, pool):
        rows = await seeds.list_pool(self.db, **self.seeds, poolKey=pool)
        return [plain(row) for row in rows]

    async def load(self, seed):
        return plain(await seeds.load_seed(self.db, **self.seeds, seed_id=seed))

    async def mark(self, seed, status):
        await seeds.mark_seed_status(self.db, **self.seeds, seed_id=seed, status=status)

    async def assign(self, seed, pool):
        await seeds.assign_to_pool(self.db, **self.seeds, seed_id=seed, poolKey=pool)

    async def declare(self, seed, metadata):
        await seeds.declare_metadata(self.db, **self.seeds, seed_id=seed, metadata=metadata)

    async def delete(self, seed):
        blob = await seed_manifest.delete_seed(self.binding, seed)
        return None if blob is None else str(blob)

    async def purge(self, seed):
        await seed_manifest.purge_seed(self.binding, seed)

    async def verify(self, seed):
        """What verify says of a seed: releases since 0.4 wrap it in an object."""
        verdict = await verify.verify_and_refresh_seed(self.db, prefix=self.prefix, seed_id=seed)
        return verdict["alive"] if isinstance(verdict, dict) else verdict

    # --- leases ---

    async def acquire(self, pool, holder):
        return await seeds.acquire(self.db, **self.seeds, poolKey=pool, holder=holder)

    async def acquire_at_once(self, pool, holders):
        tries = [seeds.acquire(self.db, **self.seeds, poolKey=pool, holder=holder) for holder in holders]
        return await asyncio.gather(*tries)

    async def renew(self, seed, holder):
        return await seeds.renew_lease(self.db, **self.seeds, seed_id=seed, holder=holder)

    async def release(self, seed, holder):
        await seeds.release(self.db, **self.seeds, seed_id=seed, holder=holder)

    async def reap(self):
        return await seeds.reap_expired_leases(self.db, **self.seeds)

    async def watch(self, process_id, seed, baseline, holder):
        """Starts what a running session starts: saves the credential back, renews the lease, cancels when it is lost."""
        context, host = self.sessions[process_id]
        self.watchers[process_id] = asyncio.create_task(
            cred_watcher.run_credential_watcher(
                context,
                host,
                seed_id=seed,
                baseline=baseline,
                encrypt=None,
                decrypt=None,
                lease_holder=holder,
            )
        )

    async def unwatch(self, process_id):
        watcher = self.watchers.pop(process_id)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    # --- snapshots ---

    async def snapshot(self, process_id, thread, cancelled):
        """Stores a session's workdir, as at the end of a run."""
        context, host = self.sessions[process_id]
        await session._capture_snapshot(
            context,
            host,
            end_state="cancelled" if cancelled else "done",
            workdir_exclude=None,
            session_id=thread,
        )

    async def latest_snapshot(self, process_id):
        return plain(await snapshots.load_latest_snapshot(self.db, self.prefix, process_id))

    async def restore(self, process_id):
        """Restores a session's newest snapshot into its workdir, as at a resume. Answers the thread to go on with."""
        context, host = self.sessions[process_id]
        row = await snapshots.load_latest_snapshot(self.db, self.prefix, process_id)
        if row is None:
            return None
        await host.restore_workdir(session._stream_blob(context, row["workdirBlobId"]))
        return {"thread": row.get("sessionId")}

    async def blob_size(self, blob):
        """How many bytes a reader of the bucket gets of a stored file."""
        stream = await AsyncIOMotorGridFSBucket(self.db).open_download_stream(ObjectId(blob))
        return len(await stream.read())


def plain(document):
    return json.loads(json_util.dumps(document, json_options=CANONICAL))


async def serve(peer):
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        try:
            answer = {"ok": await getattr(peer, request.pop("op"))(**request)}
        except Exception as failure:  # every way the package can fail is an answer
            answer = {"error": {"type": type(failure).__name__, "message": str(failure)}}
        print(json.dumps(answer), flush=True)


def main():
    logging.basicConfig(stream=sys.stderr, level=os.environ.get("LOG_LEVEL", "WARNING"))
    verify._discover_sync = lambda issuer: {"token_endpoint": "reachable"}
    cred_watcher.CRED_WATCH_INTERVAL_S = WATCH_INTERVAL_S
    asyncio.run(run(*sys.argv[1:]))


async def run(uri, database, prefix):
    await serve(Peer(uri, database, prefix))


main()
