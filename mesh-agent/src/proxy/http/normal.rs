//! The form of a path that routes and policies see.
//!
//! Envoy: `PathUtil` in the order of `ConnectionManagerUtility::maybeNormalizePath`: escaped
//! slashes, RFC 3986 and backslashes as its URL library understands them, then double slashes.
//! The query is left alone.

use bytes::Bytes;

use crate::config::model::listener::{EscapedSlashes, HttpConnectionManager};

use super::message::Path;

/// What becomes of a request by its path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The path is as it should be.
    Keep,
    /// The request goes on with this one.
    Use(Path),
    /// The client is sent to this one.
    Redirect(Path),
    /// The path is refused.
    Reject,
}

/// Looks at a path as the connection manager asks.
pub(super) fn look(path: &Path, hcm: &HttpConnectionManager) -> Verdict {
    let (bare, query) = (path.path(), &path.as_str()[path.path().len()..]);
    // `*` and the empty path of CONNECT are no paths.
    if !bare.starts_with('/') {
        return Verdict::Keep;
    }
    if !suspicious(bare) {
        return Verdict::Keep;
    }
    let mut text = bare.to_owned();
    let mut redirect = false;
    if hcm.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(&text)
    {
        match hcm.escaped_slashes {
            EscapedSlashes::Reject => return Verdict::Reject,
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            EscapedSlashes::UnescapeAndForward | EscapedSlashes::Keep => {}
        }
        text = unescaped;
    }
    if hcm.normalize_path {
        match canonical(&text) {
            Some(normal) => text = normal,
            None => return Verdict::Reject,
        }
    }
    if hcm.merge_slashes {
        text = merge_slashes(&text);
    }
    if text == bare {
        return Verdict::Keep;
    }
    text.push_str(query);
    match Path::new(Bytes::from(text)) {
        Some(path) if redirect => Verdict::Redirect(path),
        Some(path) => Verdict::Use(path),
        None => Verdict::Reject,
    }
}

/// Whether anything here could change the path. Most paths are plain, and go on as they are.
fn suspicious(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes
        .iter()
        .any(|byte| matches!(byte, b'%' | b'\\') || character(*byte) == Character::Escape)
        || bytes
            .windows(2)
            .any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'))
}

/// `%2F` and `%5C` as what they stand for; `None`: there is none.
fn unescape_slashes(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let slash = match rest.get(at + 1..at + 3) {
            Some(code) if code.eq_ignore_ascii_case("2f") => '/',
            Some(code) if code.eq_ignore_ascii_case("5c") => '\\',
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
                continue;
            }
        };
        out.push(slash);
        found = true;
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    found.then_some(out)
}

/// As Envoy, which splits and joins: of a path of slashes only, two are left.
fn merge_slashes(path: &str) -> String {
    if path.len() > 1 && path.bytes().all(|byte| byte == b'/') {
        return "//".to_owned();
    }
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

/// How a character of a path is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Character {
    /// As it is, and its escaped form stays escaped.
    Pass,
    /// As it is, and its escaped form is unescaped.
    Unescape,
    /// Only escaped.
    Escape,
    /// Nowhere.
    Invalid,
}

const fn character(byte: u8) -> Character {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Character::Unescape,
        0 => Character::Invalid,
        1..=b' ' | b'"' | b'#' | b'<' | b'>' | b'?' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f => {
            Character::Escape
        }
        _ => Character::Pass,
    }
}

fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    if bytes.first() != Some(&b'%') {
        return None;
    }
    u8::try_from(digit(1)? << 4 | digit(2)?).ok()
}

/// Dots, backslashes and escapes as a browser would write them; `None`: the path cannot be
/// written.
fn canonical(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest[0] {
            b'/' | b'\\' => {
                out.push(b'/');
                at += 1;
                at += dots(&bytes[at..], &mut out);
            }
            b'%' => match escaped(rest) {
                Some(byte) => {
                    match character(byte) {
                        Character::Unescape => out.push(byte),
                        Character::Invalid => return None,
                        Character::Pass | Character::Escape => out.extend_from_slice(&rest[..3]),
                    }
                    at += 3;
                }
                None => {
                    out.push(b'%');
                    at += 1;
                }
            },
            byte => {
                match character(byte) {
                    Character::Pass | Character::Unescape => out.push(byte),
                    Character::Escape => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                    Character::Invalid => return None,
                }
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// Takes `.` and `..` segments, also escaped ones, from the start of what follows a slash;
/// returns how much of it they were. `out` ends with that slash.
fn dots(mut rest: &[u8], out: &mut Vec<u8>) -> usize {
    let all = rest.len();
    loop {
        let one = dot(rest);
        if one == 0 {
            break;
        }
        let two = dot(&rest[one..]);
        let length = one + two;
        let ends = match rest.get(length) {
            None => 0,
            Some(b'/' | b'\\') => 1,
            Some(_) => break,
        };
        if two > 0 {
            // Up one segment: `/a/b/` becomes `/a/`; the root has no parent.
            out.pop();
            let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            out.truncate(parent);
            out.push(b'/');
        }
        rest = &rest[length + ends..];
        if ends == 0 {
            break;
        }
    }
    all - rest.len()
}

/// How many bytes a dot is written with here; 0: there is none.
fn dot(rest: &[u8]) -> usize {
    match rest.first() {
        Some(b'.') => 1,
        Some(b'%') if escaped(rest) == Some(b'.') => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_written_as_by_envoy() {
        for (path, normal) in [
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/.b", "/a/.b"),
            ("/a/..b", "/a/..b"),
            ("/a/...", "/a/..."),
            ("/a\\b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/%41%7e", "/A~"),
            ("/%2f%5C%20", "/%2f%5C%20"),
            ("/%zz", "/%zz"),
            ("/a//../b", "/a/b"),
            ("/a/.//b", "/a//b"),
        ] {
            assert_eq!(canonical(path).as_deref(), Some(normal), "{path}");
        }
        assert_eq!(canonical("/a%00b"), None);
        assert_eq!(merge_slashes("//a///b//"), "/a/b/");
        assert_eq!(merge_slashes("/"), "/");
        assert_eq!(merge_slashes("////"), "//");
        assert_eq!(
            unescape_slashes("/a%2fb%5Cc%2").as_deref(),
            Some("/a/b\\c%2")
        );
        assert_eq!(unescape_slashes("/a%20"), None);
    }

    proptest! {
        #[test]
        fn what_is_normal_stays_so_and_has_no_dots(path in "/[a./%2eE\\\\~]{0,24}") {
            let once = canonical(&path).unwrap();
            prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(once.starts_with('/'));
        }

        #[test]
        fn what_is_not_suspicious_does_not_change(path in "/[a-z./%\\\\^|]{0,24}") {
            if !suspicious(&path) {
                prop_assert_eq!(canonical(&path), Some(path.clone()));
                prop_assert_eq!(merge_slashes(&path), path);
            }
        }
    }
}
