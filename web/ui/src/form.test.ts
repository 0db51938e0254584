import { expect, it } from "vitest";
import { ANOTHER, EMPTY_FORM, check, parseLines } from "./form";
import { EMPTY_SSH } from "./sshForm";

it("an untouched form asks for nothing but what it shows", () => {
  expect(check(EMPTY_FORM)).toEqual({ body: { mode: "conversation", instructions: "", permission_gate: true } });
});

it("everything that was filled in is sent under its own name", () => {
  const checked = check({
    mode: "conversation",
    name: " tidy ",
    host: "buildbox",
    // Typed before the host was chosen by its name, and of no matter then.
    ssh: { ...EMPTY_SSH, address: "elsewhere" },
    instructions: "Do it.\n",
    model: "gpt-5.5",
    login: "pool:team",
    permissionGate: false,
    autoStart: true,
    sandbox: "read-only",
    codexConfig: '# limits\nmodel_reasoning_effort = high\nfeatures.plugins = false\nlist = ["a"]',
    env: "A=1\nB= two = 2 ",
  });
  expect(checked).toEqual({
    body: {
      mode: "conversation",
      name: "tidy",
      host: "buildbox",
      instructions: "Do it.\n",
      model: "gpt-5.5",
      seed: { pool: "team" },
      permission_gate: false,
      auto_start: true,
      sandbox: "read-only",
      codex_config: { model_reasoning_effort: "high", "features.plugins": false, list: ["a"] },
      env: { A: "1", B: " two = 2 " },
    },
  });
});

it("a terminal has no permission gate, whatever the box said before", () => {
  expect(check({ ...EMPTY_FORM, mode: "terminal", permissionGate: true, autoStart: true })).toEqual({
    body: { mode: "terminal", instructions: "", auto_start: true },
  });
});

it("full access takes the isolation off with it", () => {
  const checked = check({ ...EMPTY_FORM, sandbox: "danger-full-access", login: "seed:65f0" });
  expect(checked).toMatchObject({ body: { fs_isolation: false, seed: { id: "65f0" } } });
});

it("a line that is no pair is named by its number and nothing is sent", () => {
  expect(check({ ...EMPTY_FORM, env: "A=1\nnonsense", codexConfig: "=x" })).toEqual({
    fields: new Map([
      ["codex_config", "line 1 is not “key = value”"],
      ["env", "line 2 is not “key = value”"],
    ]),
  });
  expect(parseLines("A=1\n\nA=2")).toEqual({ error: "line 3 sets “A” again" });
});

it("another machine is described in the request, with what was filled in and nothing else", () => {
  const ssh = { ...EMPTY_SSH, address: " 10.0.0.7 ", user: "dev", port: "2222", keyFile: "~/.ssh/box" };
  expect(check({ ...EMPTY_FORM, host: ANOTHER, ssh })).toMatchObject({
    body: { host: { ssh: { address: "10.0.0.7", user: "dev", port: 2222, key_file: "~/.ssh/box" } } },
  });
  const short = check({ ...EMPTY_FORM, host: ANOTHER, ssh: { ...EMPTY_SSH, address: "box" } });
  expect("body" in short && short.body.host).toEqual({ ssh: { address: "box" } });
});

it("a wrong field of another machine is named by its whole place, beside the other wrong ones", () => {
  expect(check({ ...EMPTY_FORM, host: ANOTHER, ssh: { ...EMPTY_SSH, port: "0" }, env: "x" })).toEqual({
    fields: new Map([
      ["host.ssh.address", expect.stringContaining("needed")],
      ["host.ssh.port", expect.stringContaining("65535")],
      ["env", expect.stringContaining("line 1")],
    ]),
  });
});
