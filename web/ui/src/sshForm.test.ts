import { expect, it } from "vitest";
import { EMPTY_SSH, SSH_PLACES, checkSsh, sshPlace, type SshForm } from "./sshForm";

const PRINT = "SHA256:uNiVztksCsDhcc0u9e8BrrQXVUpKZIDTMczCvj3tD2s";

const wrong = (form: Partial<SshForm>): string[] => {
  const checked = checkSsh({ ...EMPTY_SSH, address: "box", ...form });
  return "fields" in checked ? [...checked.fields.keys()] : [];
};

it("everything that was typed is sent without the blanks around it", () => {
  const form = { address: " box ", user: " dev ", port: " 22 ", keyFile: " /k ", hostKey: ` ${PRINT} `, jump: "gate" };
  expect(checkSsh(form)).toEqual({
    target: { address: "box", user: "dev", port: 22, key_file: "/k", host_key: PRINT, jump: "gate" },
  });
});

it("a port is a whole number that a machine can have", () => {
  for (const port of ["0", "65536", "-1", "22a", "2.5", "1e3"]) expect(wrong({ port }), port).toEqual(["port"]);
  for (const port of ["", "1", "65535"]) expect(wrong({ port }), port).toEqual([]);
});

it("an address has no user in it and no blank, and may be of IPv6", () => {
  for (const address of ["", "  ", "dev@box", "box 2"]) expect(wrong({ address }), address).toEqual(["address"]);
  expect(wrong({ address: "fe80::1%eth0" })).toEqual([]);
  expect(wrong({ address: "máquina.example" })).toEqual([]);
});

it("a key is a file by its whole path, and a fingerprint is a whole one", () => {
  expect(wrong({ keyFile: "id_ed25519" })).toEqual(["key_file"]);
  expect(wrong({ keyFile: "~/.ssh/id_ed25519" })).toEqual([]);
  for (const hostKey of ["MD5:aa:bb", PRINT.slice(0, -1), `${PRINT}=`, "ssh-ed25519 AAAA"]) {
    expect(wrong({ hostKey }), hostKey).toEqual(["host_key"]);
  }
});

it("the service's names for a wrong field lead to its place", () => {
  expect(["host", "address", "key_path", "host_key[1]", "jump"].map(sshPlace)).toEqual([
    "address",
    "address",
    "key_file",
    "host_key",
    "jump",
  ]);
  expect(SSH_PLACES.map(sshPlace)).toEqual([...SSH_PLACES]);
  expect(sshPlace("task_root")).toBeNull();
});
