use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use super::*;
use crate::config::descriptors::pool;
use crate::config::model::access_log::{Filter, Json, Operator, Piece};

fn message(value: Value) -> pb::AccessLog {
    let descriptor = pool()
        .get_message_by_name("envoy.config.accesslog.v3.AccessLog")
        .expect("known");
    let message = DynamicMessage::deserialize(descriptor, value).expect("valid");
    pb::AccessLog::decode(message.encode_to_vec().as_slice()).expect("the same message")
}

fn file(format: Value, filter: Value) -> pb::AccessLog {
    let mut log = json!({ "name": "file", "typed_config": {
        "@type": format!("type.googleapis.com/{FILE}"),
        "path": "/tmp/log",
    } });
    for (field, value) in format.as_object().into_iter().flatten() {
        log["typed_config"][field] = value.clone();
    }
    if !filter.is_null() {
        log["filter"] = filter;
    }
    message(log)
}

fn converted(log: &pb::AccessLog) -> Result<AccessLog, String> {
    let mut problems = Problems::default();
    let converted = access_log(log, "l", &mut problems);
    match problems.finish(|| ()) {
        Ok(()) => converted.ok_or_else(|| "left out".to_owned()),
        Err(problems) => Err(problems.iter().map(|problem| problem.to_string()).collect()),
    }
}

fn text(format: &str) -> Result<AccessLog, String> {
    let format = json!({ "log_format": { "text_format_source": { "inline_string": format } } });
    converted(&file(format, Value::Null))
}

#[test]
fn istios_own_format_is_understood() {
    let istio = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
        %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
        \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
        %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
        \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
        %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
        %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    let log = text(istio).expect("understood");
    let wanted = AccessLogs::new(vec![log]).wanted;
    assert_eq!(wanted.request.len(), 4, "{wanted:?}");
    assert_eq!(wanted.response, ["x-envoy-upstream-service-time"]);
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (format, named) in [
        ("%NONSENSE%", "%NONSENSE%"),
        ("%REQ(a b)%", "a b"),
        ("%START_TIME(%Q)%", "%Q is not supported"),
        ("%FILTER_STATE(wasm.x)%", "wasm.x"),
        ("%METADATA(ROUTE:a:b)%", "only DYNAMIC"),
        ("%GRPC_STATUS(x)%", "CAMEL_STRING"),
        ("50%", "percent sign"),
    ] {
        let error = text(format).expect_err(format);
        assert!(error.contains(named), "{format}: {error}");
    }
}

#[test]
fn a_json_format_is_sorted_and_nested() {
    let format = json!({ "log_format": { "json_format": {
        "b": "%RESPONSE_CODE%",
        "a": { "text": "%PROTOCOL% of %REQ(x)%", "list": ["%BYTES_SENT%", 7, true] },
    } } });
    let log = converted(&file(format, Value::Null)).expect("understood");
    let Format::Json {
        root: Json::Object(fields),
        ..
    } = log.format
    else {
        panic!("no object");
    };
    let keys: Vec<&str> = fields.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["\"a\"", "\"b\""]);
    let Json::Text(pieces) = &fields[1].1 else {
        panic!("no text");
    };
    assert!(matches!(
        pieces[..],
        [Piece::Operator {
            operator: Operator::ResponseCode,
            ..
        }]
    ));
}

#[test]
fn filters_are_understood_or_named() {
    let filter = json!({ "and_filter": { "filters": [
        { "status_code_filter": { "comparison": { "op": "GE", "value": { "default_value": 400, "runtime_key": "x" } } } },
        { "or_filter": { "filters": [
            { "response_flag_filter": { "flags": ["NR", "UF"] } },
            { "header_filter": { "header": { "name": "x-log", "present_match": true } } },
        ] } },
    ] } });
    let log = converted(&file(json!({}), filter)).expect("understood");
    assert!(matches!(&log.filter, Some(Filter::All(filters)) if filters.len() == 2));
    let wanted = AccessLogs::new(vec![log]).wanted;
    assert!(
        wanted
            .request
            .contains(&http::HeaderName::from_static("x-log"))
    );
    let error = converted(&file(
        json!({}),
        json!({ "response_flag_filter": { "flags": ["XX"] } }),
    ))
    .expect_err("no such flag");
    assert!(error.contains("XX"), "{error}");
}

#[test]
fn standard_streams_are_not_opened() {
    let mut log = file(json!({}), Value::Null);
    let sinks = [
        ("/dev/stdout", Sink::Stdout),
        ("/dev/stderr", Sink::Stderr),
        ("/var/log/x", Sink::File(Path::new("/var/log/x").into())),
    ];
    for (path, expected) in sinks {
        let any = file::FileAccessLog {
            path: path.into(),
            access_log_format: None,
        };
        log.config_type = Some(ConfigType::TypedConfig(Any {
            type_url: format!("type.googleapis.com/{FILE}"),
            value: any.encode_to_vec(),
        }));
        assert_eq!(converted(&log).expect("understood").sink, expected);
    }
}
