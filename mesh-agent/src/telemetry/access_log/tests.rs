use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::model::access_log::{
    AccessLog, AccessLogs, Compare, Comparison, Filter, Format, Json, Operator, Part, Piece, Sink,
    Span, Whose,
};
use crate::config::model::matcher::HeaderKey;
use crate::config::model::response_flag::{ResponseFlag, ResponseFlags};

fn head(headers: &[(&'static str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::GET,
        path: HeaderValue::from_static("/a?b"),
        authority: HeaderValue::from_static("host"),
        scheme: "http",
        headers: headers
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_str(value).expect("a value");
                (HeaderName::from_static(name), value)
            })
            .collect(),
    }
}

fn with_entry<T>(head: &RequestHead, use_it: impl FnOnce(&mut Entry<'_>) -> T) -> T {
    let metadata = BTreeMap::from([(Arc::from("f"), json!({ "k": { "n": 7, "t": "x\"y" } }))]);
    let address = |text: &str| text.parse().expect("an address");
    let mut entry = Entry {
        kind: Kind::Request,
        started: UNIX_EPOCH,
        spans: Spans {
            whole: Duration::from_millis(12),
            request: Some(Duration::from_millis(3)),
            response: None,
            complete: true,
        },
        bytes_received: 5,
        bytes_sent: 6,
        protocol: Some("HTTP/1.1"),
        status: Some(503),
        details: "no_healthy_upstream",
        termination: "",
        flags: ResponseFlags::from(ResponseFlag::NoHealthyUpstream),
        attempts: 1,
        route: "",
        chain: "",
        cluster: Some("c"),
        transport_failure: None,
        addresses: Addresses {
            remote: address("10.0.0.1:0"),
            direct_remote: address("10.0.0.2:4711"),
            local: address("[fd00::1]:80"),
            upstream: None,
            upstream_local: None,
        },
        request: Some(head.head()),
        response: Fields::NONE,
        trailers: Fields::NONE,
        local_reply: b"no healthy upstream",
        grpc_status: None,
        metadata: &metadata,
        server_name: None,
        certificate: None,
        local_identity: None,
        connection_id: 9,
        peers: [None, None],
    };
    use_it(&mut entry)
}

fn operator(operator: Operator) -> Piece {
    Piece::Operator {
        operator,
        max_length: None,
    }
}

fn line(format: &Format, head: &RequestHead) -> String {
    with_entry(head, |entry| {
        let mut out = Vec::new();
        format.write(entry, &mut out);
        String::from_utf8(out).expect("text")
    })
}

fn request(name: &'static str, max_length: Option<usize>) -> Piece {
    Piece::Operator {
        operator: Operator::Request {
            header: HeaderKey::Header(HeaderName::from_static(name)),
            instead: Some(HeaderKey::Path),
            without_query: false,
        },
        max_length,
    }
}

#[test]
fn what_is_missing_is_a_dash_or_nothing() {
    let pieces = || {
        vec![
            operator(Operator::RouteName),
            Piece::Text(" ".into()),
            operator(Operator::Address(Whose::UpstreamRemote, Part::Whole)),
            Piece::Text(" ".into()),
            operator(Operator::Address(Whose::DownstreamLocal, Part::Whole)),
            Piece::Text(" ".into()),
            operator(Operator::Duration(Span::Response)),
            operator(Operator::Duration(Span::Request)),
            Piece::Text(" ".into()),
            request("x-a", Some(3)),
            request("x-b", None),
            Piece::Text("\n".into()),
        ]
    };
    let head = head(&[("x-a", "abcdef")]);
    let format = |omit_empty| Format::Text {
        pieces: pieces(),
        omit_empty,
    };
    assert_eq!(line(&format(false), &head), "- - [fd00::1]:80 -3 abc/a?b\n");
    assert_eq!(line(&format(true), &head), "  [fd00::1]:80 3 abc/a?b\n");
}

#[test]
fn json_values_have_types() {
    let one = |op| Json::Text(vec![operator(op)]);
    let metadata = |path: &[&str]| {
        one(Operator::DynamicMetadata {
            filter: "f".into(),
            path: path.iter().map(|key| Arc::from(*key)).collect(),
        })
    };
    let fields = || {
        Json::Object(vec![
            ("\"code\"".into(), one(Operator::ResponseCode)),
            (
                "\"flags\"".into(),
                one(Operator::ResponseFlags { long: true }),
            ),
            ("\"route\"".into(), one(Operator::RouteName)),
            ("\"m\"".into(), metadata(&["k"])),
            ("\"t\"".into(), metadata(&["k", "t"])),
            (
                "\"both\"".into(),
                Json::Text(vec![
                    operator(Operator::Protocol),
                    Piece::Text(" \"q\" ".into()),
                    operator(Operator::RouteName),
                ]),
            ),
            (
                "\"list\"".into(),
                Json::List(vec![Json::Literal("7".into())]),
            ),
        ])
    };
    let format = |omit_empty| Format::Json {
        root: fields(),
        omit_empty,
    };
    let parsed = |omit_empty| -> serde_json::Value {
        serde_json::from_str(&line(&format(omit_empty), &head(&[]))).expect("JSON")
    };
    let expected = json!({
        "code": 503, "flags": "NoHealthyUpstream", "route": null, "list": [7],
        "m": { "n": 7, "t": "x\"y" }, "t": "x\"y", "both": "HTTP/1.1 \"q\" -",
    });
    assert_eq!(parsed(false), expected);
    let mut without = expected;
    without.as_object_mut().expect("an object").remove("route");
    without["both"] = json!("HTTP/1.1 \"q\" ");
    assert_eq!(parsed(true), without);
}

#[test]
fn filters_look_at_the_entry() {
    let compared = |op, value| Filter::Status(Comparison { op, value });
    let head = head(&[("user-agent", "Envoy/HC")]);
    with_entry(&head, |entry| {
        assert!(compared(Compare::AtLeast, 500).holds(entry));
        assert!(!compared(Compare::AtMost, 500).holds(entry));
        assert!(compared(Compare::NotEqual, 200).holds(entry));
        assert!(Filter::Flags(None).holds(entry));
        let reset = ResponseFlags::from(ResponseFlag::UpstreamRemoteReset);
        assert!(!Filter::Flags(Some(reset)).holds(entry));
        assert!(!Filter::NotHealthCheck.holds(entry));
        assert!(!Filter::Any(Vec::new()).holds(entry));
        assert!(Filter::All(Vec::new()).holds(entry));
        entry.grpc_status = Some(14);
        let grpc = |exclude| Filter::Grpc {
            statuses: 1 << 14,
            exclude,
        };
        assert!(grpc(false).holds(entry) && !grpc(true).holds(entry));
    });
}

#[test]
fn lines_are_written_when_the_writer_ends_and_a_file_may_be_moved_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let logs = AccessLogs::new(vec![AccessLog {
        filter: None,
        format: Format::Text {
            pieces: vec![operator(Operator::ResponseCode), Piece::Text("\n".into())],
            omit_empty: false,
        },
        sink: Sink::File(path.as_path().into()),
    }]);
    let writer = AccessLogWriter::start().expect("a thread");
    let logger = writer.logger();
    let head = head(&[]);
    with_entry(&head, |entry| logger.log(&logs, entry));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(&path)
        .unwrap_or_default()
        .is_empty()
    {
        assert!(std::time::Instant::now() < deadline, "nothing is written");
        std::thread::yield_now();
    }
    std::fs::rename(&path, folder.path().join("old")).expect("moved");
    writer.reopen();
    for _ in 0..1000 {
        with_entry(&head, |entry| logger.log(&logs, entry));
    }
    drop(logger);
    drop(writer);
    let lines = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        text.lines().filter(|line| *line == "503").count()
    };
    // A line that was on its way when the file was moved may have reached the old one.
    assert_eq!(lines("old") + lines("log"), 1001);
    assert!(lines("log") > 0, "the file was not opened anew");
}

#[test]
fn what_finds_no_room_is_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let logs = AccessLogs::new(vec![AccessLog {
        filter: None,
        format: Format::Text {
            pieces: vec![Piece::Text("x".repeat(1 << 20).into())],
            omit_empty: false,
        },
        sink: Sink::File(folder.path().join("log").into()),
    }]);
    let writer = AccessLogWriter::start().expect("a thread");
    let logger = writer.logger();
    let head = head(&[]);
    let mut handed = 0;
    let dropped = || {
        writer
            .stats()
            .dropped
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    while dropped() == 0 && handed < 100_000 {
        with_entry(&head, |entry| logger.log(&logs, entry));
        handed += 1;
    }
    let dropped = dropped();
    assert!(dropped > 0, "{handed} lines of a MiB all found room");
    drop(logger);
    drop(writer);
    let written = std::fs::metadata(folder.path().join("log"))
        .expect("it is there")
        .len()
        >> 20;
    assert_eq!(written + dropped, handed);
}

proptest! {
    #[test]
    fn a_json_line_is_json_whatever_the_request_says(
        value in proptest::collection::vec(0x20u8..=0xff, 0..40),
        max_length in proptest::option::of(0usize..20),
    ) {
        let Ok(value) = HeaderValue::from_bytes(&value) else {
            return Ok(());
        };
        let mut head = head(&[]);
        head.headers.push((HeaderName::from_static("x-a"), value));
        let format = Format::Json {
            root: Json::Object(vec![
                ("\"one\"".into(), Json::Text(vec![request("x-a", max_length)])),
                ("\"two\"".into(), Json::Text(vec![request("x-a", max_length), Piece::Text("!".into())])),
            ]),
            omit_empty: false,
        };
        let parsed: serde_json::Value = serde_json::from_str(&line(&format, &head))?;
        prop_assert!(parsed["one"].is_string() && parsed["two"].is_string());
    }
}
