//! Outlier detection.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::google::protobuf::{self, UInt32Value};

use crate::config::model::outlier::{Check, OutlierDetection, RateCheck};

use super::{Problems, duration};

pub(super) fn convert(message: &pb::OutlierDetection, problems: &mut Problems) -> OutlierDetection {
    let number = |value: &Option<UInt32Value>, default| value.as_ref().map_or(default, |v| v.value);
    let mut percent = |value: &Option<UInt32Value>, default, field: &str| {
        let percent = number(value, default);
        if percent > 100 {
            let path = format!("outlier_detection.{field}");
            problems.push(path, "is a percentage from 0 to 100");
        }
        percent.min(100)
    };
    let check = |count: u32, enforcing: u32| Check { count, enforcing };
    let consecutive_5xx = check(
        number(&message.consecutive_5xx, 5),
        percent(
            &message.enforcing_consecutive_5xx,
            100,
            "enforcing_consecutive_5xx",
        ),
    );
    let consecutive_gateway_failure = check(
        number(&message.consecutive_gateway_failure, 5),
        percent(
            &message.enforcing_consecutive_gateway_failure,
            0,
            "enforcing_consecutive_gateway_failure",
        ),
    );
    let consecutive_local_origin_failure = check(
        number(&message.consecutive_local_origin_failure, 5),
        percent(
            &message.enforcing_consecutive_local_origin_failure,
            100,
            "enforcing_consecutive_local_origin_failure",
        ),
    );
    let success_rate = RateCheck {
        minimum_hosts: number(&message.success_rate_minimum_hosts, 5),
        request_volume: number(&message.success_rate_request_volume, 100),
        threshold: number(&message.success_rate_stdev_factor, 1900),
        enforcing: percent(
            &message.enforcing_success_rate,
            100,
            "enforcing_success_rate",
        ),
        enforcing_local_origin: percent(
            &message.enforcing_local_origin_success_rate,
            100,
            "enforcing_local_origin_success_rate",
        ),
    };
    let failure_percentage = RateCheck {
        minimum_hosts: number(&message.failure_percentage_minimum_hosts, 5),
        request_volume: number(&message.failure_percentage_request_volume, 50),
        threshold: percent(
            &message.failure_percentage_threshold,
            85,
            "failure_percentage_threshold",
        ),
        enforcing: percent(
            &message.enforcing_failure_percentage,
            0,
            "enforcing_failure_percentage",
        ),
        enforcing_local_origin: percent(
            &message.enforcing_failure_percentage_local_origin,
            0,
            "enforcing_failure_percentage_local_origin",
        ),
    };
    let max_ejection_percent = percent(&message.max_ejection_percent, 10, "max_ejection_percent");
    let mut time = |value: &Option<protobuf::Duration>, default: Duration, field: &str| {
        value.as_ref().map_or(default, |value| {
            duration(value, &format!("outlier_detection.{field}"), problems)
        })
    };
    let base = time(
        &message.base_ejection_time,
        Duration::from_secs(30),
        "base_ejection_time",
    );
    let interval = time(&message.interval, Duration::from_secs(10), "interval");
    let max = time(
        &message.max_ejection_time,
        Duration::from_secs(300).max(base),
        "max_ejection_time",
    );
    let max_ejection_jitter = time(
        &message.max_ejection_time_jitter,
        Duration::ZERO,
        "max_ejection_time_jitter",
    );
    if interval.is_zero() {
        problems.push("outlier_detection.interval", "must be more than 0");
    }
    if max < base {
        problems.push(
            "outlier_detection.max_ejection_time",
            "must not be less than base_ejection_time",
        );
    }
    OutlierDetection {
        consecutive_5xx,
        consecutive_gateway_failure,
        consecutive_local_origin_failure,
        split_local_origin: message.split_external_local_origin_errors,
        interval,
        base_ejection_time: base,
        max_ejection_time: max,
        max_ejection_jitter,
        max_ejection_percent,
        always_eject_one: message
            .always_eject_one_host
            .as_ref()
            .is_some_and(|value| value.value),
        success_rate,
        failure_percentage,
    }
}
