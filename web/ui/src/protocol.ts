/**
 * The wire types of the service, as the page reads them. One file, nothing but types and the names of events, so that
 * it can be laid beside `/openapi.json`.
 *
 * Where the contract leaves a member open, the page's assumption is marked **Assumed**. The page tolerates a missing
 * member everywhere an `?` or `| null` stands.
 */

/** A point in time, RFC 3339 in UTC. */
export type Time = string;

/** Where a session is. `ended` carries an {@link Outcome} beside it; every state carries a reason. */
export type SessionState = "starting" | "idle" | "working" | "waiting" | "stopping" | "ended" | "lost";

/** How an ended session ended. **Assumed**: a member `outcome` of the session and of `session.ended`. */
export type Outcome = "done" | "stopped" | "failed";

/** One thing a session needs a person for. */
export interface Waiting {
  kind: "approval" | "question" | "login" | "attention";
  id: string;
  since: Time;
  /** What for, where the agent said it. */
  reason?: string;
}

/** How far the agent is, in its own words. */
export interface Progress {
  percent: number | null;
  message: string;
}

/** A file that was handed over and is kept. */
export interface Deliverable {
  /** Relative to the session's `deliverables/`. */
  path: string;
  bytes: number;
  sha256: string;
  kept_at: Time;
}

/** The steps of a teardown, in their order. */
export type TeardownStepName =
  | "close"
  | "stop_agent"
  | "quiet_watcher"
  | "save_back"
  | "release_lease"
  | "capture_seed"
  | "capture_snapshot"
  | "wipe"
  | "disconnect";

/** How far one step of a teardown is. `withheld` means: not done on purpose, because an earlier step failed. */
export type TeardownState = "pending" | "running" | "done" | "skipped" | "failed" | "withheld";

/** One step of a teardown, on record. */
export interface TeardownStep {
  step: TeardownStepName;
  state: TeardownState;
  started_at: Time | null;
  ended_at: Time | null;
  detail: string | null;
}

/** One launch of Codex for a session. */
export interface Run {
  id: string;
  started_at: Time;
  agent: { pid: number | null; version: string | null } | null;
  /** The seed's id, none for a run without a login of the store. */
  seed: string | null;
  lease: { holder: string; expires_at: Time } | null;
  thread_id: string | null;
  model: string | null;
  resumed_from: string | null;
}

/** A session: one named piece of work that lives across runs. */
export interface Session {
  id: string;
  name: string | null;
  labels: Record<string, string> | string[] | null;
  mode: "conversation" | "terminal";
  /** The host's name: `local` for this machine, `ssh:user@address:port` for one that the session itself described. */
  host: string;
  state: SessionState;
  outcome?: Outcome | null;
  /** One sentence a person understands. */
  reason: string | null;
  /** Why a run failed, as a word that does not change. */
  code?: string | null;
  /** Its host is out of reach, since then; the session goes on when it is back. */
  host_down?: HostDown | null;
  created_at: Time;
  updated_at: Time;
  run: Run | null;
  waiting: Waiting[];
  progress?: Progress | null;
  teardown: TeardownStep[];
  has_snapshot: boolean;
  /** True, or the path, when the teardown left the workdir on its host. **Assumed**: either form. */
  workdir_kept: boolean | string | null;
  /** **Assumed**: the sequence number of the newest event in the session's journal. */
  last_event: number | null;
}

/** How an approval stands. `pending` is the only state a person can change. */
export type ApprovalState = "pending" | "accepted" | "declined" | "cancelled" | "expired";

/** A question of Codex whether it may do something. */
export interface Approval {
  id: string;
  session: string;
  kind: "command" | "file_change" | (string & {});
  state: ApprovalState;
  /** **Assumed**: Codex's string verbatim (`/bin/bash -lc '…'`); an argv is read too. */
  command: string | string[] | null;
  cwd: string | null;
  reason: string | null;
  changes?: FileChange[] | null;
  /** The request's params as Codex sent them; `itemId` names the item it belongs to. */
  raw: { itemId?: string; [member: string]: unknown } | null;
  asked_at: Time;
  answered_at?: Time | null;
  answered_by?: string | null;
}

/** What a person can answer to an {@link Approval}. */
export type Decision = "accept" | "accept_for_session" | "decline" | "cancel";

/** One file Codex changes, as in its `fileChange` items. */
export interface FileChange {
  path: string;
  kind: { type: "add" | "delete" | "update" | (string & {}); move_path?: string | null } | string;
  /** A unified diff for an update, the whole content for an added file. */
  diff: string;
}

/** The right of one run to use a seed. */
export interface SeedLease {
  holder: string;
  session: string | null;
  expires_at: Time;
}

/** A stored login. Its secrets are never on the wire. */
export interface Seed {
  id: string;
  pool: string | null;
  status: "alive" | "dead" | "needs_recovery";
  account: string | null;
  lease: SeedLease | null;
  /** True when a lease ran out without a release: the last holder may have a newer token. */
  dirty: boolean;
  created_at: Time;
  updated_at: Time;
  verify: { verdict: string; checked_at: Time } | null;
  metadata: unknown;
}

/** A new login by a code, on its way to a seed. */
export interface SeedLogin {
  id: string;
  state: "starting" | "pending" | "saving" | "done" | "failed" | "cancelled";
  /** Where the person logs in; with the code while it is pending. */
  verification_url: string | null;
  user_code: string | null;
  expires_at: Time | null;
  /** The seed it became. */
  seed: string | null;
  /** Why it failed, or what it waits for while it is saved. */
  reason: string | null;
}

/** Why a host is out of reach, and since when. */
export interface HostDown {
  since: Time;
  /** A word that does not change, e.g. `host_unreachable`. */
  code: string;
  reason: string;
}

/** A machine that sessions run on. What is known of one behind SSH only is none for `local`. */
export interface Host {
  name: string;
  kind: "local" | "ssh";
  address?: string | null;
  port?: number | null;
  user?: string | null;
  /** The host it is reached through. */
  jump?: string | null;
  source: "built_in" | "config" | "api" | "inline";
  /** `untried`: nobody has wanted anything of it yet. */
  state: "up" | "down" | "untried";
  since?: Time | null;
  code?: string | null;
  reason?: string | null;
  /** Sessions that live on it now. */
  sessions: number;
  host_key?: "pinned" | "known_hosts" | "trust_on_first_use" | null;
  /** Programs at a time on one connection. */
  max_sessions?: number | null;
}

/** The fields of a machine behind SSH, as `POST /v1/hosts` and a session's `host.ssh` take them. */
export interface SshTarget {
  address: string;
  user?: string;
  port?: number;
  key_file?: string;
  host_key?: string;
  jump?: string;
}

/** The key that a host shows, in the problem of a host that is refused for it. */
export interface ShownKey {
  algorithm: string;
  fingerprint: string;
  /** Where the known key stands; only with `host_key_changed`. */
  known_in?: string | null;
}

/** A program on a host. */
export interface Tool {
  path: string;
  version: string | null;
}

/** Who an agent is, so that another process with its number is not taken for it. */
export interface AgentIdentity {
  pid: number;
  start_time: number;
}

/** A task directory on a host that no session of this service owns. */
export interface Leftover {
  id: string;
  path: string;
  age_seconds: number;
  /** None when counting took too long. */
  bytes: number | null;
  /** The agent that lives in it. */
  agent: AgentIdentity | null;
  /** The run it was made for. */
  mark: string | null;
  /** There is a login in it, or nobody can tell. */
  has_login: boolean;
  /** Why it is not known whether an agent lives in it. */
  problem?: string | null;
}

/** What a host said about itself. */
export interface Probe {
  name: string;
  latency_ms: number;
  os: string | null;
  kernel: string | null;
  arch: string | null;
  user: string | null;
  home: string | null;
  shell?: string | null;
  /** None is missing. */
  tools: Record<string, Tool | null>;
  disk: { path: string; free_bytes: number; total_bytes: number } | null;
  /** What stands in the way of some or all sessions, in words. */
  problems: string[];
  orphans: Leftover[];
}

/** One leftover to be removed, and what was seen of it. */
export interface ReapTask {
  id: string;
  agent: AgentIdentity | null;
  /** The login in it may be destroyed. */
  discard_login?: boolean;
}

/** What became of one of them. */
export interface ReapOutcome {
  id: string;
  outcome: "reaped" | "refused" | "failed";
  detail: string | null;
}

/** One page of a list. */
export interface Page<T> {
  data: T[];
  next_cursor: string | null;
}

/** What a message of the folded conversation is. */
export type MessageKind =
  | "user"
  | "assistant"
  | "reasoning"
  | "command"
  | "file_change"
  | "plan"
  | "approval"
  | "notice"
  | "other";

/**
 * One message of the folded conversation (`GET …/messages`, newest first).
 *
 * **Assumed**: `id` is Codex's item id (an approval's: the approval's id), so that a later event finds its message;
 * `seq` is the *newest* event folded into it, so that the page can continue the stream after the largest one;
 * `status` is Codex's (`inProgress`, `completed`, `failed`, `declined`) or null; `detail` is Codex's item verbatim
 * (command: `command`, `cwd`, `exitCode`, `aggregatedOutput`, `durationMs`; file change: `changes`; plan: `plan`,
 * `explanation`), and for an approval the {@link Approval}.
 */
export interface Message {
  id: string;
  seq: number;
  turn: string | null;
  kind: MessageKind;
  text: string | null;
  status: string | null;
  at: Time | null;
  detail: unknown;
}

/** What every event has. */
export interface EventEnvelope {
  v: number;
  seq: number;
  ts: Time;
  session: string;
  type: string;
}

/** One item of a Codex turn, as far as the page reads it. */
export interface CodexItem {
  id: string;
  type: string;
  text?: string | null;
  content?: { type: string; text?: string }[] | string[] | null;
  summary?: string[] | null;
  command?: string | string[] | null;
  cwd?: string | null;
  status?: string | null;
  exitCode?: number | null;
  aggregatedOutput?: string | null;
  durationMs?: number | null;
  changes?: FileChange[] | null;
  [member: string]: unknown;
}

/** One step of Codex's plan. */
export interface PlanStep {
  step: string;
  status: "pending" | "inProgress" | "completed" | (string & {});
}

/**
 * The params of a Codex notification, verbatim. Which members are there depends on the event; all are optional here
 * because nothing but the event's name promises them.
 */
export interface CodexParams {
  threadId?: string;
  turnId?: string;
  itemId?: string;
  item?: CodexItem;
  delta?: string;
  turn?: { id: string; status?: string; error?: { message?: string } | null; durationMs?: number | null };
  plan?: PlanStep[];
  explanation?: string | null;
  diff?: string;
  error?: { message?: string } | null;
  willRetry?: boolean;
  message?: string;
  summary?: string;
  [member: string]: unknown;
}

/**
 * An event of the journal. A Codex notification has `codex`; the rest depends on the name.
 *
 * **Assumed**: `approval.*` carries `approval`; `session.*` carries `state`, `reason`, `waiting` and, when ended,
 * `outcome`; `teardown.step` carries `step`; `gap` carries `from`, `to`, `reason`; `progress`, `attention`,
 * `deliverable` and `browser.requested` carry what they say in `message`, `reason`, `path` or `url`; `host.down` and
 * `host.up` carry `host`, `since`, `code` and `reason`.
 */
export interface ServiceEvent extends EventEnvelope {
  turn?: string | null;
  codex?: CodexParams;
  approval?: Approval;
  state?: SessionState;
  outcome?: Outcome | null;
  reason?: string | null;
  waiting?: Waiting[];
  step?: TeardownStep;
  from?: number;
  to?: number;
  message?: string | null;
  percent?: number | null;
  /** How many notes of progress were left out before this one. */
  left_out?: number;
  accepted?: boolean;
  reply?: string;
  path?: string | null;
  url?: string | null;
  seed?: string | null;
  /** With `host.down` and `host.up`. */
  host?: string;
  since?: Time | null;
  code?: string | null;
}

/** An error answer (RFC 9457). **Assumed**: a validation error names its fields in `errors`. */
export interface ProblemBody {
  type?: string;
  title?: string;
  status?: number;
  detail?: string;
  code?: string;
  retryable?: boolean;
  request_id?: string;
  errors?: { field?: string; detail?: string; message?: string }[];
  host_key?: ShownKey | null;
}

/** The body of `POST /v1/sessions`, as far as the form fills it. */
export interface NewSession {
  mode: "conversation" | "terminal";
  name?: string;
  host?: string | { ssh: SshTarget };
  instructions: string;
  model?: string;
  seed?: { id: string } | { pool: string };
  permission_gate?: boolean;
  auto_start?: boolean;
  sandbox?: "read-only" | "workspace-write" | "danger-full-access";
  fs_isolation?: boolean;
  codex_config?: Record<string, unknown>;
  env?: Record<string, string>;
}

/** The answer of `POST …/turns`. */
export interface TurnAccepted {
  turn_id?: string | null;
  delivered_as: "new" | "steer" | "queue" | (string & {});
}

/** Events that change how a session stands; what the session list listens to. */
export const SESSION_EVENTS = [
  "session.created",
  "session.state",
  "session.waiting",
  "session.stopping",
  "session.ended",
  "session.adopted",
  "approval.requested",
  "approval.resolved",
  "attention",
  "host.down",
  "host.up",
  "reset",
] as const;

/**
 * Every event name the session page listens to. An `EventSource` hands a named event only to a listener of that very
 * name, so `codex.<method>` notifications without a place on the page are left out.
 */
export const CONVERSATION_EVENTS = [
  ...SESSION_EVENTS,
  "teardown.step",
  "turn.started",
  "turn.completed",
  "item.started",
  "item.delta",
  "item.completed",
  "plan.updated",
  "diff.updated",
  "usage.updated",
  "limits.updated",
  "progress",
  "deliverable",
  "browser.requested",
  "seed.leased",
  "seed.rotated",
  "seed.saved",
  "seed.released",
  "seed.lost",
  "snapshot.captured",
  "child.restarted",
  "gap",
  "codex.error",
  "codex.warning",
  "codex.deprecationNotice",
] as const;
