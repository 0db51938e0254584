/** What the page says about machines, and which of their leftovers it asks to be removed. No DOM, no network. */

import type { Host, Leftover, Probe, ReapTask, Session, Tool } from "./protocol";
import { clock } from "./text";

/** This machine. */
export const LOCAL = "local";

const SOURCES: Record<Host["source"], string> = {
  built_in: "built in",
  config: "configuration file",
  api: "added here",
  inline: "described by a session",
};

/** Where a host is from, in words. */
export const sourceOf = (host: Host): string => SOURCES[host.source] ?? host.source;

const KEY_RULES: Record<string, string> = {
  pinned: "pinned",
  known_hosts: "from known_hosts",
  trust_on_first_use: "trusted on first use",
};

/** How a host proves who it is, in words; empty for this machine. */
export const keyRuleOf = (host: Host): string => (host.host_key ? (KEY_RULES[host.host_key] ?? host.host_key) : "");

/** `user@address:port` of a host behind SSH, with the port only where it is not 22; empty for this machine. */
export function addressOf(host: Host): string {
  if (!host.address) return "";
  const address = host.address.includes(":") ? `[${host.address}]` : host.address;
  return `${host.user ? `${host.user}@` : ""}${address}${host.port && host.port !== 22 ? `:${host.port}` : ""}`;
}

/** A host in a list to choose from: one that is down is said to be, and may be chosen all the same. */
export const optionOf = (host: Host): string => (host.state === "down" ? `${host.name} (down)` : host.name);

/** What a person is told of a host that they chose; none when there is nothing to tell. */
export function cautionOf(host: Host | undefined): string | null {
  if (host?.state !== "down") return null;
  return `${host.name} is down${since(host.since)}: ${host.reason || host.code || "it did not say why"}`;
}

/** Another host may be reached through one that has a name of its own. */
export const isNamed = (host: Host): boolean =>
  host.kind === "ssh" && (host.source === "config" || host.source === "api");

/** Only a host that was added here can be taken away here, or one that a session described. */
export const isRemovable = (host: Host): boolean => host.source === "api" || host.source === "inline";

/** True when a host is refused for the key that it shows. */
export const isKeyTrouble = (code: string | null | undefined): boolean =>
  code === "host_key_unknown" || code === "host_key_changed";

/** True while a session waits for its host; one that is over waits for nothing. */
export const isCutOff = (session: Session): boolean =>
  session.host_down != null && session.state !== "ended" && session.state !== "lost";

/** The banner of a session whose host is out of reach; none when it is not. */
export function downWords(session: Session): string | null {
  if (!isCutOff(session) || !session.host_down) return null;
  const { since: when, reason, code } = session.host_down;
  return `host ${session.host}: down${since(when)}: ${reason || code || "it did not say why"}`;
}

/** A session's reason, unless it only says once more what the banner says. */
export const reasonBeside = (session: Session): string | null =>
  isCutOff(session) && session.reason?.startsWith(`host ${session.host}: down since `) ? null : session.reason || null;

/** ` since 12:03`, with the day where it is not today's; nothing for a time that cannot be read. */
function since(time: string | null | undefined): string {
  const date = new Date(time ?? "");
  if (Number.isNaN(date.getTime())) return "";
  const today = date.toDateString() === new Date().toDateString();
  return ` since ${today ? clock(time) : `${date.toLocaleDateString()} ${clock(time)}`}`;
}

/** Why a session takes no message now; none when it does. */
export function closedBecause(session: Session): string | null {
  if (session.mode === "terminal") return "This session runs in a terminal; it is not driven from here.";
  if (session.state === "ended" || session.state === "lost") {
    return session.has_snapshot ? "This session has ended. Resume it to go on." : "This session has ended.";
  }
  if (session.state === "stopping") return "This session is stopping.";
  if (isCutOff(session)) return `Host ${session.host} cannot be reached. You can send when it is back.`;
  return null;
}

/** The programs of a host by name; what is missing is none. */
export function toolsOf(probe: Probe): { name: string; tool: Tool | null }[] {
  return Object.entries(probe.tools).map(([name, tool]) => ({ name, tool }));
}

/**
 * A fingerprint that a person copied from the machine itself is the one that is shown here. What `ssh-keygen -l` puts
 * around it (`256 SHA256:… root@box (ED25519)`) does no harm.
 */
export function isSameKey(typed: string, fingerprint: string): boolean {
  return fingerprint !== "" && typed.split(/\s+/).includes(fingerprint);
}

/**
 * The tasks of a request that removes `chosen`: each with the agent that was seen, so that another one is spared. A
 * leftover with a login in it stays away until its own tick is set, too; how many of those, is `held`.
 */
export function reapTasks(
  leftovers: readonly Leftover[],
  chosen: ReadonlySet<string>,
  discard: ReadonlySet<string>,
): { tasks: ReapTask[]; held: number } {
  const wanted = leftovers.filter((left) => chosen.has(left.id));
  const ready = wanted.filter((left) => !left.has_login || discard.has(left.id));
  const tasks = ready.map((left) => ({
    id: left.id,
    agent: left.agent,
    ...(left.has_login ? { discard_login: true } : {}),
  }));
  return { tasks, held: wanted.length - ready.length };
}
