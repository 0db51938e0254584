/** What is typed into the new-session form, and the request it becomes. */

import type { NewSession } from "./protocol";
import { EMPTY_SSH, checkSsh, type SshForm } from "./sshForm";

/** Chosen in place of a host's name: a machine that the session itself describes. No host can have this name. */
export const ANOTHER = "+another";

/** The form as typed. Kept by the page while it is open, so that looking at another view loses nothing. */
export interface SessionForm {
  mode: "conversation" | "terminal";
  name: string;
  /** A host's name, or {@link ANOTHER}. */
  host: string;
  /** The other machine. */
  ssh: SshForm;
  instructions: string;
  model: string;
  /** `""` none, `seed:<id>` or `pool:<key>`. */
  login: string;
  permissionGate: boolean;
  autoStart: boolean;
  sandbox: "" | "read-only" | "workspace-write" | "danger-full-access";
  codexConfig: string;
  env: string;
}

export const EMPTY_FORM: Readonly<SessionForm> = {
  mode: "conversation",
  name: "",
  host: "local",
  ssh: EMPTY_SSH,
  instructions: "",
  model: "",
  login: "",
  permissionGate: true,
  autoStart: false,
  sandbox: "",
  codexConfig: "",
  env: "",
};

/** Either the request, or what is wrong with which field. */
export type Checked = { body: NewSession } | { fields: Map<string, string> };

/** Reads `key = value` lines; blank lines and lines that start with `#` are skipped. The error names the line. */
export function parseLines(text: string): { pairs: [string, string][] } | { error: string } {
  const pairs: [string, string][] = [];
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "" || line.trimStart().startsWith("#")) continue;
    const at = line.indexOf("=");
    const key = line.slice(0, at === -1 ? undefined : at).trim();
    if (at === -1 || key === "") return { error: `line ${index + 1} is not “key = value”` };
    if (pairs.some(([other]) => other === key)) return { error: `line ${index + 1} sets “${key}” again` };
    pairs.push([key, line.slice(at + 1)]);
  }
  return { pairs };
}

/** Reads a Codex config value: a number, true, false, a quoted string or a list as such, anything else as a string. */
export function configValue(text: string): unknown {
  const trimmed = text.trim();
  try {
    return JSON.parse(trimmed) as unknown;
  } catch {
    return trimmed;
  }
}

/** Turns the form into a request. Only what was filled in is sent; the service knows the defaults. */
export function check(form: SessionForm): Checked {
  const fields = new Map<string, string>();
  const body: NewSession = { mode: form.mode, instructions: form.instructions };
  if (form.name.trim() !== "") body.name = form.name.trim();
  if (form.host === ANOTHER) {
    const ssh = checkSsh(form.ssh);
    if ("fields" in ssh) for (const [field, why] of ssh.fields) fields.set(`host.ssh.${field}`, why);
    else body.host = { ssh: ssh.target };
  } else if (form.host !== "" && form.host !== "local") body.host = form.host;
  if (form.model.trim() !== "") body.model = form.model.trim();
  if (form.login.startsWith("seed:")) body.seed = { id: form.login.slice("seed:".length) };
  if (form.login.startsWith("pool:")) body.seed = { pool: form.login.slice("pool:".length) };
  // In a terminal Codex asks on its own screen, and the service refuses the gate.
  if (form.mode === "conversation") body.permission_gate = form.permissionGate;
  if (form.autoStart) body.auto_start = true;
  if (form.sandbox !== "") body.sandbox = form.sandbox;
  // Full access and isolation contradict each other, and the service refuses the pair (S-036).
  if (form.sandbox === "danger-full-access") body.fs_isolation = false;

  const config = parseLines(form.codexConfig);
  if ("error" in config) fields.set("codex_config", config.error);
  else if (config.pairs.length > 0) {
    body.codex_config = Object.fromEntries(config.pairs.map(([key, value]) => [key, configValue(value)]));
  }
  // A variable's value is kept as typed: blanks may matter.
  const env = parseLines(form.env);
  if ("error" in env) fields.set("env", env.error);
  else if (env.pairs.length > 0) body.env = Object.fromEntries(env.pairs);

  return fields.size > 0 ? { fields } : { body };
}
