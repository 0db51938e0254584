/** A machine behind SSH as it is typed, and the fields that the service takes. */

import type { SshTarget } from "./protocol";

/** What is typed. Empty is left to the service. */
export interface SshForm {
  address: string;
  user: string;
  port: string;
  keyFile: string;
  hostKey: string;
  /** The host to go through. */
  jump: string;
}

export const EMPTY_SSH: Readonly<SshForm> = { address: "", user: "", port: "", keyFile: "", hostKey: "", jump: "" };

/** The names of the fields on the wire; those of a wrong one have a place in the form. */
export const SSH_PLACES = ["address", "user", "port", "key_file", "host_key", "jump"] as const;

/** What the service calls a field in a session's own words. */
const OTHER_NAMES: Record<string, string> = { host: "address", key_path: "key_file" };

/** The place of a field that the service found wrong, e.g. `host_key[0]` or `key_path`; none when it has no place. */
export function sshPlace(field: string): string | null {
  const first = field.split(/[.[]/)[0] ?? field;
  const name = OTHER_NAMES[first] ?? first;
  return (SSH_PLACES as readonly string[]).includes(name) ? name : null;
}

/** SHA-256 has 32 bytes, which are 43 characters of base64 without its padding. */
const FINGERPRINT = /^SHA256:[A-Za-z0-9+/]{43}$/;

/** The fields to send, or what is wrong with which of them, by its name on the wire. */
export function checkSsh(form: SshForm): { target: SshTarget } | { fields: Map<string, string> } {
  const fields = new Map<string, string>();
  const typed = (text: string): string => text.trim();

  const target: SshTarget = { address: typed(form.address) };
  if (target.address === "") fields.set("address", "The name or the IP address of the machine is needed.");
  else if (/[\s@]/.test(target.address)) fields.set("address", "A name or an IP address only; the user has a field of its own.");

  if (typed(form.user) !== "") target.user = typed(form.user);

  const port = typed(form.port);
  if (port !== "") {
    target.port = Number(port);
    if (!/^\d+$/.test(port) || target.port < 1 || target.port > 65_535) fields.set("port", "A number from 1 to 65535.");
  }

  const keyFile = typed(form.keyFile);
  if (keyFile !== "") {
    target.key_file = keyFile;
    if (!/^(\/|~\/)/.test(keyFile)) fields.set("key_file", "A whole path on the service's machine: /… or ~/….");
  }

  const hostKey = typed(form.hostKey);
  if (hostKey !== "") {
    target.host_key = hostKey;
    if (!FINGERPRINT.test(hostKey)) fields.set("host_key", "A fingerprint as “ssh-keygen -l” shows it: SHA256: and 43 characters.");
  }

  if (form.jump !== "") target.jump = form.jump;
  return fields.size > 0 ? { fields } : { target };
}
