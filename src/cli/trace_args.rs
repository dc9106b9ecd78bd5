//! Where traces go. The environment twins are OpenTelemetry's own names.

use std::fmt::Display;
use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Failure};
use crate::app::{Endpoint, Headers, TraceOptions};
use crate::message::Span;

/// What OpenTelemetry gives a request.
const TIMEOUT: Duration = Duration::from_secs(10);
const SERVICE: &str = "synthex";

// All of it is read after clap, and only where traces go somewhere: these variables may be set for other programs, to what
// means nothing here, and clap would repeat a bad value, which may have a password in it.
#[derive(Args)]
#[command(next_help_heading = "Traces")]
pub(super) struct TraceArgs {
    /// Send traces of jobs to an OpenTelemetry receiver (OTLP, http/protobuf), such as http://127.0.0.1:4318; none for
    /// nowhere
    #[arg(
        long,
        value_name = "URL",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env_values = true,
        default_value = "none"
    )]
    otlp_endpoint: String,
    /// Headers for the receiver, as name=value,name=value, the values percent-encoded
    #[arg(
        long,
        value_name = "LIST",
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true
    )]
    otlp_headers: Option<String>,
    /// How long the receiver may take over a request; a bare number is of milliseconds [default: 10s]
    #[arg(long, value_name = "DURATION", env = "OTEL_EXPORTER_OTLP_TIMEOUT")]
    otlp_timeout: Option<String>,
    /// What the worker is called among services [default: synthex]
    #[arg(long, value_name = "NAME", env = "OTEL_SERVICE_NAME")]
    otlp_service: Option<String>,
    /// The share of jobs to trace, from 0 to 1, of those that bring no traceparent; of the others, their producer decides
    /// [default: 1]
    #[arg(long, value_name = "RATIO", env = "OTEL_TRACES_SAMPLER_ARG")]
    trace_ratio: Option<String>,
}

impl TraceArgs {
    /// Where traces go; `None` for nowhere.
    pub(super) fn options(self) -> Result<Option<TraceOptions>, Failure> {
        // OpenTelemetry takes an empty variable for one that is not there.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let Some(endpoint) = given(Some(self.otlp_endpoint)).filter(|text| text != "none") else {
            return Ok(None);
        };
        let headers = given(self.otlp_headers).unwrap_or_default();
        let timeout = given(self.otlp_timeout).map_or(Some(TIMEOUT), |text| timeout(&text));
        let ratio = given(self.trace_ratio).map_or(Some(1.0), |text| ratio(&text));
        Ok(Some(TraceOptions {
            endpoint: Endpoint::parse(&endpoint).map_err(|error| refused("--otlp-endpoint", &error))?,
            headers: Headers::parse(&headers).map_err(|error| refused("--otlp-headers", &error))?,
            timeout: timeout.ok_or_else(|| refused("--otlp-timeout", &"expected a duration such as 10s"))?,
            ratio: ratio.ok_or_else(|| refused("--trace-ratio", &"expected a number from 0 to 1"))?,
            service: given(self.otlp_service).unwrap_or_else(|| SERVICE.to_owned()),
        }))
    }
}

fn refused(flag: &str, why: &dyn Display) -> Failure {
    Failure::new(Exit::Config, format!("{flag}: {why}"))
}

fn timeout(text: &str) -> Option<Duration> {
    let milliseconds = || text.parse().ok().map(Duration::from_millis);
    let timeout = text.parse().map(Span::get).ok().or_else(milliseconds);
    timeout.filter(|timeout| !timeout.is_zero())
}

fn ratio(text: &str) -> Option<f64> {
    text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_duration_or_milliseconds() {
        assert_eq!(timeout("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("3s"), Some(Duration::from_secs(3)));
        for bad in ["0", "", "-1", "0s", "soon"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_ratio_is_a_share() {
        assert_eq!(
            (ratio("0"), ratio("0.25"), ratio("1")),
            (Some(0.0), Some(0.25), Some(1.0))
        );
        for bad in ["", "-0.1", "1.1", "NaN", "half"] {
            assert_eq!(ratio(bad), None, "{bad}");
        }
    }
}
