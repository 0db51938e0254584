//! Reads what the model is to do from what the user said.

use std::time::Duration;

use serde_json::Value;

const VERBS: [&str; 7] = ["say", "slow", "hold", "call", "raw", "http", "drop"];

/// The longest piece of a tool's output that is repeated back.
const ECHO_LIMIT: usize = 300;

/// One answer of the model.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Text, word by word, with this long after each.
    Say { text: String, pause: Duration },
    /// Text that stands still after its first word.
    Hold { text: String },
    /// Text that breaks off after its second word.
    Drop { text: String },
    /// A call of a function tool; the arguments are JSON as text.
    Call { name: String, arguments: String },
    /// A call of a custom tool.
    Raw { name: String, input: String },
    /// No stream, this status.
    Http(u16),
}

/// The conversation of a request.
pub(super) fn input(body: &Value) -> &[Value] {
    body["input"].as_array().map_or(&[], Vec::as_slice)
}

/// Decides the answer to a request, or says what is wrong with the directive.
pub(super) fn next_step(body: &Value) -> Result<Step, String> {
    let input = input(body);
    let (text, outputs) = script_and_position(input);
    if let Some(directive) = directives(&text).get(outputs) {
        return parse(directive);
    }
    if outputs > 0 {
        let said = input.last().map(|item| item["output"].to_string()).unwrap_or_default();
        return Ok(say(format!("tool said: {}", head(&said, ECHO_LIMIT))));
    }
    Ok(say(format!("pong: {}", head(&text, 60))))
}

/// The last thing the user typed.
pub(super) fn last_user_text(input: &[Value]) -> String {
    script_and_position(input).0
}

/// Finds the user's last message and how many tools have answered since.
fn script_and_position(input: &[Value]) -> (String, usize) {
    let mut outputs = 0;
    for item in input.iter().rev() {
        let kind = item["type"].as_str().unwrap_or("message");
        if kind.ends_with("_output") {
            outputs += 1;
        }
        if kind != "message" || item["role"] != "user" {
            continue;
        }
        let text = content(&item["content"]);
        // Codex tells the model about its environment in messages of the user's role, in tags.
        if !text.trim_start().starts_with('<') {
            return (text, outputs);
        }
    }
    (String::new(), outputs)
}

fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// Splits a message into its directives: the first may stand anywhere, the others at the start of a line.
fn directives(text: &str) -> Vec<&str> {
    let is_directive = |rest: &str| {
        let word = rest.strip_prefix('@').and_then(|rest| rest.split_whitespace().next());
        word.is_some_and(|word| VERBS.contains(&word))
    };
    let mut starts: Vec<usize> = Vec::new();
    for (at, _) in text.match_indices('@') {
        let begins_line = text[..at].ends_with('\n');
        if is_directive(&text[at..]) && (starts.is_empty() || begins_line) {
            starts.push(at);
        }
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(&start, end)| text[start..end].trim_end()).collect()
}

fn parse(directive: &str) -> Result<Step, String> {
    let (verb, rest) = cut(directive);
    let text = rest.to_owned();
    match verb {
        "@say" => Ok(say(text)),
        "@hold" => Ok(Step::Hold { text }),
        "@drop" => Ok(Step::Drop { text }),
        "@slow" => {
            let (seconds, text) = cut(rest);
            let pause = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let pause = pause.ok_or_else(|| format!("@slow wants seconds and a text, not {rest:?}"))?;
            Ok(Step::Say { text: text.to_owned(), pause })
        }
        "@call" => {
            let (name, arguments) = cut(rest);
            serde_json::from_str::<serde_json::Map<String, Value>>(arguments)
                .map_err(|err| format!("@call {name} wants a JSON object: {err}"))?;
            Ok(Step::Call { name: name.to_owned(), arguments: arguments.to_owned() })
        }
        "@raw" => {
            let (name, input) = cut(rest);
            Ok(Step::Raw { name: name.to_owned(), input: input.to_owned() })
        }
        "@http" => {
            let status = rest.split_whitespace().next().and_then(|word| word.parse().ok());
            let status = status.filter(|status| (400..600).contains(status));
            status
                .map(Step::Http)
                .ok_or_else(|| format!("@http wants a status from 400 to 599, not {rest:?}"))
        }
        _ => Err(format!("no directive starts {verb:?}")),
    }
}

pub(super) fn say(text: String) -> Step {
    Step::Say { text, pause: Duration::ZERO }
}

/// Takes off the first word.
fn cut(text: &str) -> (&str, &str) {
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

fn head(text: &str, limit: usize) -> &str {
    text.char_indices().nth(limit).map_or(text, |(at, _)| &text[..at])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(text: &str) -> Value {
        json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] })
    }

    fn step(input: Value) -> Result<Step, String> {
        next_step(&json!({ "input": input }))
    }

    #[test]
    fn a_plain_message_is_echoed() {
        assert_eq!(step(json!([user("hello there")])), Ok(say("pong: hello there".into())));
    }

    #[test]
    fn what_codex_adds_about_the_environment_is_not_the_users_word() {
        let input = json!([user("@say yes"), user("<environment_context>@say no</environment_context>")]);
        assert_eq!(step(input), Ok(say("yes".into())));
    }

    #[test]
    fn an_address_is_not_a_directive() {
        assert_eq!(step(json!([user("write to a@b.test")])), Ok(say("pong: write to a@b.test".into())));
    }

    #[test]
    fn each_tool_output_advances_the_script_by_one_line() {
        let script =
            user("please @call first {}\n@raw apply_patch *** Begin Patch\n*** End Patch\n@say done");
        let output = json!({ "type": "function_call_output", "output": "42" });
        assert_eq!(step(json!([script])), Ok(Step::Call { name: "first".into(), arguments: "{}".into() }));
        let patch = Step::Raw { name: "apply_patch".into(), input: "*** Begin Patch\n*** End Patch".into() };
        assert_eq!(step(json!([script, output])), Ok(patch));
        assert_eq!(step(json!([script, output, output])), Ok(say("done".into())));
        assert_eq!(step(json!([script, output, output, output])), Ok(say("tool said: \"42\"".into())));
    }

    #[test]
    fn a_new_message_starts_its_own_script() {
        let output = json!({ "type": "function_call_output", "output": "42" });
        assert_eq!(step(json!([user("@call a {}"), output, user("@say b")])), Ok(say("b".into())));
    }

    #[test]
    fn a_directive_with_a_mistake_is_refused_aloud() {
        for (message, complaint) in
            [("@slow soon x", "seconds"), ("@call f [1]", "JSON object"), ("@http 200", "400 to 599")]
        {
            let refusal = step(json!([user(message)])).expect_err(message);
            assert!(refusal.contains(complaint), "{message}: {refusal}");
        }
    }
}
