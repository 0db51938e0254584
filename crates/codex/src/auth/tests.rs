#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.sig", part(&json!({ "alg": "none", "typ": "JWT" })), part(claims))
}

fn chatgpt_file() -> Value {
    let id_token = jwt(&json!({
        "email": "lab@example.test", "sub": "s", "exp": 1,
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": "plus", "chatgpt_user_id": "user-1", "chatgpt_account_id": "acct-claim",
        },
    }));
    json!({
        "auth_mode": "chatgpt", "OPENAI_API_KEY": null, "added_by_a_later_codex": { "x": 1 },
        "tokens": {
            "id_token": id_token, "access_token": jwt(&json!({ "exp": 1_763_683_200 })),
            "refresh_token": "rt-original", "account_id": "acct-lab",
        },
        "last_refresh": "2026-11-11T00:56:50.502336123Z",
    })
}

fn of(file: &Value) -> Credential {
    read(file.to_string().as_bytes())
}

fn login(file: &Value) -> ChatGptLogin {
    match of(file) {
        Credential::ChatGpt(login) => *login,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chatgpt_login_says_whose_it_is() {
    let login = login(&chatgpt_file());
    assert_eq!(login.account_id.as_deref(), Some("acct-lab"));
    assert_eq!(login.user_id.as_deref(), Some("user-1"));
    assert_eq!(login.email.as_deref(), Some("lab@example.test"));
    assert_eq!(login.plan.as_deref(), Some("plus"));
    assert_eq!(login.last_refresh.unwrap().to_string(), "2026-11-11T00:56:50.502336123Z");
    assert_eq!(login.access_expires_at.unwrap().as_second(), 1_763_683_200);
    assert_eq!(of(&chatgpt_file()).label().unwrap(), "lab@example.test (plus)");
}

#[test]
fn opaque_tokens_are_a_login_too() {
    let file = json!({ "tokens": { "refresh_token": "r", "access_token": "opaque", "id_token": "x.?.y" } });
    let login = login(&file);
    assert_eq!((login.email, login.access_expires_at, login.last_refresh), (None, None, None));
    assert_eq!(of(&file).label().unwrap(), "ChatGPT account");
}

#[test]
fn the_account_of_the_claims_stands_in_for_a_missing_one() {
    let mut file = chatgpt_file();
    file["tokens"].as_object_mut().unwrap().remove("account_id");
    assert_eq!(of(&file).account_id(), Some("acct-claim"));
}

#[test]
fn a_key_is_a_login_that_never_rotates() {
    let file = json!({ "OPENAI_API_KEY": "sk-lab", "tokens": null });
    let login = of(&file);
    assert!(matches!(login, Credential::ApiKey(_)) && login.is_login() && !login.rotates());
    assert!(login.label().unwrap().starts_with("API key "));
}

#[test]
fn beside_a_refresh_token_a_key_counts_only_when_the_file_says_so() {
    let mut file = chatgpt_file();
    file["OPENAI_API_KEY"] = json!("sk-lab");
    assert!(of(&file).rotates());
    file["auth_mode"] = json!("apikey");
    assert!(matches!(of(&file), Credential::ApiKey(_)));
    file.as_object_mut().unwrap().remove("auth_mode");
    assert!(of(&file).rotates());
}

#[test]
fn empty_shapes_that_the_original_took_for_logins_are_none() {
    for file in [
        json!({}),
        json!({ "tokens": {} }),
        json!({ "tokens": [] }),
        json!({ "tokens": "rt" }),
        json!({ "OPENAI_API_KEY": "" }),
        json!({ "OPENAI_API_KEY": 1 }),
        json!({ "tokens": { "refresh_token": "" } }),
        json!({ "tokens": { "refresh_token": ["x"] } }),
        json!({ "tokens": { "access_token": "only" }, "auth_mode": "chatgpt" }),
        json!({ "agent_identity": {} }),
        json!({ "auth_mode": "agent_identity" }),
        json!({ "personal_access_token": null }),
    ] {
        assert_eq!(of(&file), Credential::LoggedOut, "{file}");
        assert_eq!(fingerprint(file.to_string().as_bytes()), None, "{file}");
        assert_eq!(parse(file.to_string().as_bytes()), Err(NotALogin::LoggedOut));
    }
}

#[test]
fn other_kinds_of_login_are_kept_and_do_not_rotate() {
    for file in [
        json!({ "auth_mode": "agent_identity", "agent_identity": { "account_id": "a", "private_key": "k" } }),
        json!({ "auth_mode": "agentIdentity", "agent_identity": "jwt" }),
        json!({ "personal_access_token": "pat" }),
        json!({ "auth_mode": "chatgptAuthTokens", "tokens": { "access_token": "x", "account_id": "a" } }),
    ] {
        let login = of(&file);
        assert!(matches!(login, Credential::Other(_)) && !login.rotates(), "{file}");
        assert!(login.label().is_some() && fingerprint(file.to_string().as_bytes()).is_some());
    }
}

#[test]
fn a_file_caught_half_written_is_unreadable_and_not_logged_out() {
    let whole = serde_json::to_vec_pretty(&chatgpt_file()).unwrap();
    for end in 0..whole.len() {
        let seen = read(&whole[..end]);
        assert!(matches!(seen, Credential::Unreadable(_)), "cut at {end}: {seen:?}");
        assert_eq!(fingerprint(&whole[..end]), None);
    }
    assert!(read(&whole).is_login());
    assert_eq!(read(b" \n"), Credential::Unreadable(Unreadable::Empty));
    assert_eq!(read(b"[1]"), Credential::Unreadable(Unreadable::NotAnObject));
    assert_eq!(read(&vec![b' '; MAX_AUTH_JSON + 1]), Credential::Unreadable(Unreadable::TooLarge));
}

#[test]
fn a_fingerprint_is_of_the_bytes_and_a_lineage_of_the_token() {
    let compact = chatgpt_file().to_string();
    let pretty = serde_json::to_string_pretty(&chatgpt_file()).unwrap();
    let (a, b) = (fingerprint(compact.as_bytes()).unwrap(), fingerprint(pretty.as_bytes()).unwrap());
    assert_ne!(a, b);
    assert!(a.len() == 64 && a.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    assert_eq!(read(compact.as_bytes()).lineage_hash(), read(pretty.as_bytes()).lineage_hash());
    // printf rt-original | sha256sum
    let known = "62b05754d20d41f8ae8ff1a3c3daa9a965e072a44b6c7dec403d11feada47fcf";
    assert_eq!(read(compact.as_bytes()).lineage_hash(), Some(known));
    let mut rotated = chatgpt_file();
    rotated["tokens"]["refresh_token"] = json!("rt-next");
    assert_ne!(of(&rotated).lineage_hash(), Some(known));
}

#[test]
fn accounts_are_compared_by_all_that_both_files_say() {
    let ours = of(&chatgpt_file());
    let with = |change: fn(&mut Value)| {
        let mut file = chatgpt_file();
        change(&mut file);
        of(&file)
    };
    let rotated = with(|f| f["tokens"]["refresh_token"] = json!("rt-next"));
    assert_eq!(same_account(&ours, &rotated), Some(true));
    let other_account = with(|f| f["tokens"]["account_id"] = json!("acct-other"));
    assert_eq!(same_account(&ours, &other_account), Some(false));
    let colleague = with(|f| {
        f["tokens"]["id_token"] =
            json!(jwt(&json!({ "https://api.openai.com/auth": { "user_id": "user-2" } })));
    });
    assert_eq!(same_account(&ours, &colleague), Some(false));
    let anonymous = of(&json!({ "tokens": { "refresh_token": "r" } }));
    assert_eq!(same_account(&ours, &anonymous), None);
    assert_eq!(same_account(&ours, &of(&json!({ "OPENAI_API_KEY": "k" }))), Some(false));
    assert_eq!(same_account(&ours, &Credential::LoggedOut), None);
}

#[test]
fn last_refresh_is_read_in_all_its_forms() {
    let read = |value: Value| token::instant(&value).map(|t| t.to_string());
    let at = Some("2026-07-02T00:11:54Z".to_owned());
    assert_eq!(read(json!("2026-07-02T00:11:54Z")), at);
    assert_eq!(read(json!("2026-07-02T02:11:54+02:00")), at);
    assert_eq!(read(json!("2026-07-02T00:11:54")), at);
    assert_eq!(read(json!(1_782_951_114)), at);
    assert_eq!(read(json!(1_782_951_114_000_i64)), at);
    for nothing in [json!(true), json!("soon"), json!(null), json!(1e300), json!({})] {
        assert_eq!(read(nothing.clone()), None, "{nothing}");
    }
}

#[test]
fn nothing_secret_is_in_debug_errors_or_labels() {
    let mut file = chatgpt_file();
    file["tokens"]["refresh_token"] = json!("SECRET-1");
    file["tokens"]["access_token"] = json!("SECRET-2");
    let keyed = json!({ "OPENAI_API_KEY": "SECRET-3" });
    let identity = json!({ "agent_identity": { "private_key": "SECRET-4" } });
    for login in [of(&file), of(&keyed), of(&identity)] {
        let shown = format!("{login:?} {:?}", login.label());
        assert!(!shown.contains("SECRET"), "{shown}");
    }
    let error = parse(b"{\"OPENAI_API_KEY\": SECRET").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("SECRET"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_classifier_panic_and_only_logins_have_fingerprints(bytes in any::<Vec<u8>>()) {
        prop_assert_eq!(fingerprint(&bytes).is_some(), read(&bytes).is_login());
    }

    #[test]
    fn every_token_makes_a_login_that_hides_it(token in "[!-~]{12,40}") {
        let login = of(&json!({ "tokens": { "refresh_token": token } }));
        let shown = format!("{login:?}");
        prop_assert!(login.rotates() && !shown.contains(&token));
    }
}
