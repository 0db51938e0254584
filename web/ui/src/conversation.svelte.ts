/** One open session: its object, its conversation and its stream, held together for the session page. */

import * as api from "./api";
import { EventStream, type Connection } from "./events";
import { Fold, applyToSession, type ChatItem } from "./fold";
import { CONVERSATION_EVENTS, type Approval, type Deliverable, type ServiceEvent, type Session } from "./protocol";
import { HIDDEN_MS, sessions } from "./sessions.svelte";

/** Messages a page; what a person scrolls through in a minute. */
const PAGE = 60;

/** Events are shown in batches of this length: two frames, which no eye tells from at once. */
const FLUSH_MS = 32;

/** After an event that changes how the session stands, the session is asked for once, this much later. */
const SETTLE_MS = 200;

/** One entry of the chat with a signal of its own, so that a delta renders this entry and nothing else. */
export class Row {
  readonly key: string;
  item = $state.raw<ChatItem>() as ChatItem;

  constructor(item: ChatItem) {
    this.key = item.key;
    this.item = item;
  }
}

export class Conversation {
  readonly id: string;
  session = $state.raw<Session | null>(null);
  /** What the agent has handed over, and the service keeps. */
  deliverables = $state.raw<readonly Deliverable[]>([]);
  rows = $state.raw<readonly Row[]>([]);
  connection = $state.raw<Connection>({ state: "connecting" });
  /** Why the session could not be loaded; the page offers to try again. */
  problem = $state.raw<string | null>(null);
  loading = $state(true);
  /** The cursor of the next older page, none at the beginning. */
  older = $state.raw<string | null>(null);
  /** Why the conversation's beginning could not be loaded. */
  olderProblem = $state.raw<string | null>(null);
  loadingOlder = $state(false);

  #fold = new Fold();
  #rows = new Map<string, Row>();
  #stream: EventStream | null = null;
  #queue: ServiceEvent[] = [];
  #flush: ReturnType<typeof setTimeout> | undefined;
  #settle: ReturnType<typeof setTimeout> | undefined;
  #hidden: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  constructor(id: string) {
    this.id = id;
    document.addEventListener("visibilitychange", this.#visibility);
    void this.load();
  }

  /** Reads everything anew: the session, its newest messages, its approvals; then follows the stream. */
  async load(): Promise<void> {
    this.#stream?.close();
    this.loading = true;
    this.problem = null;
    try {
      const [session, messages, approvals] = await Promise.all([
        api.getSession(this.id),
        api.listMessages(this.id, PAGE, null),
        api.listApprovals(this.id),
      ]);
      if (this.#closed) return;
      const fold = new Fold();
      fold.prepend(messages.data);
      fold.addApprovals(approvals);
      this.#fold = fold;
      this.#queue = [];
      this.#rows.clear();
      this.older = messages.next_cursor;
      this.#list();
      this.#session(session);
      this.#askDeliverables();
      this.#follow();
    } catch (thrown) {
      this.problem = api.explain(thrown);
    } finally {
      this.loading = false;
    }
  }

  async loadOlder(): Promise<void> {
    if (this.older === null || this.loadingOlder) return;
    this.loadingOlder = true;
    this.olderProblem = null;
    const fold = this.#fold;
    try {
      const page = await api.listMessages(this.id, PAGE, this.older);
      if (fold !== this.#fold) return;
      fold.prepend(page.data);
      this.older = page.next_cursor;
      this.#list();
    } catch (thrown) {
      this.olderProblem = api.explain(thrown);
    } finally {
      this.loadingOlder = false;
    }
  }

  /** Asks for the session again; an error is the caller's to show. */
  async refresh(): Promise<void> {
    const session = await api.getSession(this.id);
    if (!this.#closed) this.#session(session);
  }

  /** Shows what was just sent until Codex repeats it. */
  sent(text: string, deliveredAs: string): void {
    this.#fold.sent(text, deliveredAs, new Date().toISOString());
    this.#list();
  }

  /** Shows an answer before its event arrives. */
  answered(approval: Approval): void {
    this.#fold.addApprovals([approval]);
    this.#list();
  }

  /** Asks how the approvals stand: somebody else may have answered first. */
  async refreshApprovals(): Promise<void> {
    this.#fold.addApprovals(await api.listApprovals(this.id));
    this.#list();
  }

  retryNow(): void {
    this.#stream?.retryNow();
  }

  close(): void {
    this.#closed = true;
    this.#stream?.close();
    clearTimeout(this.#flush);
    clearTimeout(this.#settle);
    clearTimeout(this.#hidden);
    document.removeEventListener("visibilitychange", this.#visibility);
  }

  #visibility = (): void => {
    clearTimeout(this.#hidden);
    if (document.hidden) this.#hidden = setTimeout(() => this.#stream?.pause(), HIDDEN_MS);
    else this.#stream?.resume();
  };

  #follow(): void {
    this.#stream = new EventStream({
      url: `/v1/sessions/${encodeURIComponent(this.id)}/events`,
      names: CONVERSATION_EVENTS,
      after: this.#fold.through,
      onEvent: (event) => {
        this.#queue.push(event);
        this.#flush ??= setTimeout(() => this.#drain(), FLUSH_MS);
      },
      onConnection: (connection) => {
        this.connection = connection;
      },
      head: async () => {
        await this.refresh();
        return this.session?.last_event ?? null;
      },
      onFailure: () => {
        // Only to learn of a 401 or of a session that is gone; the connection line already says the rest.
        this.refresh().catch((thrown: unknown) => {
          if (thrown instanceof api.Problem && thrown.status === 404) this.problem = api.explain(thrown);
        });
      },
    });
  }

  #drain(): void {
    this.#flush = undefined;
    const events = this.#queue;
    this.#queue = [];
    let list = false;
    let stands = false;
    let handedOver = false;
    const touched = new Set<string>();
    for (const event of events) {
      if (event.type === "reset") {
        void this.load();
        return;
      }
      const change = this.#fold.apply(event);
      list ||= change.list;
      if (change.key !== null) touched.add(change.key);
      stands ||= this.#applyToSession(event);
      handedOver ||= event.type === "deliverable";
    }
    if (handedOver) this.#askDeliverables();
    if (list) this.#list();
    else for (const key of touched) this.#update(key);
    if (stands) this.#settle ??= setTimeout(() => this.#ask(), SETTLE_MS);
  }

  #applyToSession(event: ServiceEvent): boolean {
    const session = this.session;
    const matters = /^(session|teardown|approval|turn|seed|snapshot|host)\./.test(event.type);
    // A replayed event is older than the session that was just asked for.
    if (session && event.seq > (session.last_event ?? 0)) this.#session(applyToSession(session, event));
    return matters;
  }

  #ask(): void {
    this.#settle = undefined;
    // The stream goes on without this answer, and the next event asks again.
    this.refresh().catch(() => {});
  }

  #askDeliverables(): void {
    api
      .listDeliverables(this.id)
      .then((files) => {
        if (!this.#closed) this.deliverables = files;
      })
      // The next one asks again.
      .catch(() => {});
  }

  #session(session: Session): void {
    if (this.session === session) return;
    this.session = session;
    sessions.put(session);
  }

  #update(key: string): void {
    const item = this.#fold.get(key);
    const row = this.#rows.get(key);
    if (item && row) row.item = item;
  }

  #list(): void {
    const rows: Row[] = [];
    const known = new Map<string, Row>();
    for (const item of this.#fold.items) {
      const row = this.#rows.get(item.key) ?? new Row(item);
      if (row.item !== item) row.item = item;
      rows.push(row);
      known.set(item.key, row);
    }
    this.#rows = known;
    this.rows = rows;
  }
}
