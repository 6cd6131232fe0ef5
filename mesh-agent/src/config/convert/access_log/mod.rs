//! Access logs.

mod filter;
mod format;
mod operator;
mod split;
mod time;

pub(super) use filter::convert as filter;
pub(super) use format::{convert as format, pieces};

use std::path::Path;
use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{
    stderr_access_log, stdout_access_log,
};
use envoy_types::pb::google::protobuf::Any;

use crate::config::model::access_log::{AccessLog, AccessLogs, Format, Sink};

use super::{Problems, decode, type_name};

const FILE: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
const STDERR: &str = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";

/// Loggers that send entries elsewhere. They are accepted, because control planes put them beside
/// others and no request depends on them, and nothing is sent: `docs/envoy-parity.md` says so.
const REMOTE: &[&str] = &[
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
];

/// The access logs of a connection manager, a TCP proxy or a listener.
pub(super) fn convert(
    messages: &[pb::AccessLog],
    path: &str,
    problems: &mut Problems,
) -> Arc<AccessLogs> {
    let logs = messages
        .iter()
        .enumerate()
        .filter_map(|(i, message)| {
            let path = super::super::error::join(path, &format!("access_log[{i}]"));
            access_log(message, &path, problems)
        })
        .collect();
    Arc::new(AccessLogs::new(logs))
}

fn access_log(message: &pb::AccessLog, path: &str, problems: &mut Problems) -> Option<AccessLog> {
    let filter = match &message.filter {
        Some(filter) => Some(filter::convert(
            filter,
            &format!("{path}.filter"),
            problems,
        )?),
        None => None,
    };
    let Some(ConfigType::TypedConfig(any)) = &message.config_type else {
        problems.push(format!("{path}.typed_config"), "is missing");
        return None;
    };
    let (sink, format) = logger(
        any,
        &message.name,
        &format!("{path}.typed_config"),
        problems,
    )?;
    Some(AccessLog {
        filter,
        format,
        sink,
    })
}

fn logger(any: &Any, name: &str, path: &str, problems: &mut Problems) -> Option<(Sink, Format)> {
    Some(match type_name(any) {
        FILE => {
            let message: file::FileAccessLog = decode(any, path, problems)?;
            let format = match &message.access_log_format {
                Some(AccessLogFormat::Format(text)) if !text.is_empty() => {
                    format::text(text, false, &format!("{path}.format"), problems)?
                }
                Some(
                    AccessLogFormat::JsonFormat(fields) | AccessLogFormat::TypedJsonFormat(fields),
                ) => format::json(fields, false, &format!("{path}.json_format"), problems)?,
                Some(AccessLogFormat::LogFormat(message)) => {
                    format::convert(message, &format!("{path}.log_format"), problems)?
                }
                _ => format::default(),
            };
            (sink(&message.path, path, problems)?, format)
        }
        STDOUT => {
            let message: stream::StdoutAccessLog = decode(any, path, problems)?;
            let stdout_access_log::AccessLogFormat::LogFormat(message) =
                match &message.access_log_format {
                    Some(format) => format,
                    None => return Some((Sink::Stdout, format::default())),
                };
            let format = format::convert(message, &format!("{path}.log_format"), problems)?;
            (Sink::Stdout, format)
        }
        STDERR => {
            let message: stream::StderrAccessLog = decode(any, path, problems)?;
            let stderr_access_log::AccessLogFormat::LogFormat(message) =
                match &message.access_log_format {
                    Some(format) => format,
                    None => return Some((Sink::Stderr, format::default())),
                };
            let format = format::convert(message, &format!("{path}.log_format"), problems)?;
            (Sink::Stderr, format)
        }
        kind if REMOTE.contains(&kind) => return None,
        kind => {
            problems.hint(
                path,
                format!("access logger {name} ({kind}) is not supported yet"),
                "use envoy.access_loggers.file, stdout or stderr",
            );
            return None;
        }
    })
}

fn sink(path: &str, at: &str, problems: &mut Problems) -> Option<Sink> {
    match path {
        "" => {
            problems.push(format!("{at}.path"), "a path is missing");
            None
        }
        // Opened anew they might be a socket, which cannot be opened.
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(Sink::Stdout),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(Sink::Stderr),
        path => Some(Sink::File(Path::new(path).into())),
    }
}

#[cfg(test)]
mod tests;
