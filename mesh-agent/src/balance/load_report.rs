//! Load reports of endpoints (ORCA): in responses' headers or trailers, as protobuf, text or JSON
//! (Envoy: `Orca::parseOrcaLoadReportHeaders`).

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName};
use prost::Message as _;

/// A binary report, in base64.
const BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
/// `TEXT ...`, `JSON ...` or `BIN ...`
const FORMATTED: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// `xds.data.orca.v3.OrcaLoadReport`
#[derive(Clone, PartialEq, prost::Message, serde::Deserialize)]
#[serde(default)]
pub struct LoadReport {
    /// Of the processor.
    #[prost(double, tag = "1")]
    pub cpu_utilization: f64,
    /// Of the memory.
    #[prost(double, tag = "2")]
    pub mem_utilization: f64,
    /// Costs of this request.
    #[prost(map = "string, double", tag = "4")]
    pub request_cost: HashMap<String, f64>,
    /// Of other resources.
    #[prost(map = "string, double", tag = "5")]
    pub utilization: HashMap<String, f64>,
    /// Requests a second.
    #[prost(double, tag = "6")]
    pub rps_fractional: f64,
    /// Errors a second.
    #[prost(double, tag = "7")]
    pub eps: f64,
    /// Of the application's own.
    #[prost(map = "string, double", tag = "8")]
    pub named_metrics: HashMap<String, f64>,
    /// Of the application as it sees itself.
    #[prost(double, tag = "9")]
    pub application_utilization: f64,
}

impl LoadReport {
    /// The report of a response, if there is a well-formed one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some(value) = headers.get(BINARY) {
            return Self::parse_binary(value.to_str().ok()?);
        }
        let value = headers.get(FORMATTED)?.to_str().ok()?;
        let (format, report) = value.split_once(' ')?;
        match format {
            "BIN" => Self::parse_binary(report),
            "TEXT" => Self::parse_text(report),
            "JSON" => serde_json::from_str(report).ok(),
            _ => None,
        }
    }

    fn parse_binary(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
        Self::decode(bytes.as_slice()).ok()
    }

    /// `name=value` pairs, separated by commas; of maps `field.key=value`.
    pub fn parse_text(text: &str) -> Option<Self> {
        let mut report = Self::default();
        for pair in text.split(',') {
            let (name, value) = pair.split_once([':', '='])?;
            let value: f64 = value
                .trim()
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())?;
            match name.trim() {
                "cpu_utilization" => report.cpu_utilization = value,
                "mem_utilization" => report.mem_utilization = value,
                "application_utilization" => report.application_utilization = value,
                "rps_fractional" => report.rps_fractional = value,
                "eps" => report.eps = value,
                name => {
                    let (field, key) = name.split_once('.')?;
                    let map = match field {
                        "named_metrics" => &mut report.named_metrics,
                        "utilization" => &mut report.utilization,
                        "request_cost" => &mut report.request_cost,
                        _ => return None,
                    };
                    if key.is_empty() || map.insert(key.into(), value).is_some() {
                        return None;
                    }
                }
            }
        }
        Some(report)
    }

    /// The weight that follows: requests a second by utilization, errors counted against it.
    /// `None`: it says too little.
    pub fn weight(&self, metrics: &[Arc<str>], error_penalty: f64) -> Option<u32> {
        let mut utilization = self.utilization(metrics);
        if self.rps_fractional.is_nan() || self.rps_fractional <= 0.0 {
            return None;
        }
        if self.eps > 0.0 && error_penalty > 0.0 {
            utilization += self.eps / self.rps_fractional * error_penalty;
        }
        // A float becomes the largest number there is at most.
        (utilization > 0.0).then(|| (self.rps_fractional / utilization) as u32)
    }

    fn utilization(&self, metrics: &[Arc<str>]) -> f64 {
        let named = metrics.iter().map(|name| self.metric(name));
        let named = named.fold(0.0, f64::max);
        [named, self.application_utilization]
            .into_iter()
            .find(|value| *value > 0.0)
            .unwrap_or(self.cpu_utilization)
    }

    fn metric(&self, name: &str) -> f64 {
        let in_map = |map: &HashMap<String, f64>, key: &str| map.get(key).copied();
        let value = match name.split_once('.') {
            Some(("named_metrics", key)) => in_map(&self.named_metrics, key),
            Some(("utilization", key)) => in_map(&self.utilization, key),
            Some(("request_cost", key)) => in_map(&self.request_cost, key),
            _ => match name {
                "cpu_utilization" => Some(self.cpu_utilization),
                "mem_utilization" => Some(self.mem_utilization),
                "application_utilization" => Some(self.application_utilization),
                "eps" => Some(self.eps),
                "rps_fractional" => Some(self.rps_fractional),
                _ => None,
            },
        };
        value.unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(name: HeaderName, value: &str) -> Option<LoadReport> {
        let value = HeaderValue::from_str(value).expect("a value");
        LoadReport::of(&HeaderMap::from_iter([(name, value)]))
    }

    #[test]
    fn a_report_is_the_same_in_every_form() {
        let text = of(
            FORMATTED,
            "TEXT cpu_utilization=0.25,rps_fractional=100,named_metrics.queue=0.5",
        )
        .expect("text");
        let json = of(
            FORMATTED,
            r#"JSON {"cpu_utilization":0.25,"rps_fractional":100,"named_metrics":{"queue":0.5}}"#,
        );
        let bytes = BASE64_STANDARD.encode(text.encode_to_vec());
        assert_eq!(json.as_ref(), Some(&text));
        assert_eq!(of(BINARY, &bytes).as_ref(), Some(&text));
        assert_eq!(of(FORMATTED, &format!("BIN {bytes}")).as_ref(), Some(&text));
        assert_eq!(text.weight(&[], 1.0), Some(400));
        assert_eq!(text.weight(&["named_metrics.queue".into()], 1.0), Some(200));
        for bad in [
            "TEXT a",
            "TEXT cpu_utilization=x",
            "XML <a/>",
            "JSON {",
            "BIN !",
            "TEXT",
        ] {
            assert_eq!(of(FORMATTED, bad), None, "{bad}");
        }
    }

    #[test]
    fn errors_weigh_against_an_endpoint() {
        let report =
            LoadReport::parse_text("application_utilization=0.5,rps_fractional=100,eps=50")
                .expect("a report");
        assert_eq!(report.weight(&[], 1.0), Some(100));
        assert_eq!(report.weight(&[], 0.0), Some(200));
        let silent = LoadReport::parse_text("application_utilization=0.5").expect("a report");
        assert_eq!(silent.weight(&[], 1.0), None);
    }
}
