//! `hanse tap`: live requests, one line each as they end.

use futures_util::StreamExt as _;
use hanse_control::admin::{TapEvent, TapPart, TapRequest};
use hanse_federation::tap::{Direction, Filter, Request, Tap, Target};
use hanse_identity::{NodeName, Timestamp};
use serde_json::{Value, json};

use super::{Outcome, qualified, talk};
use crate::cli::{Global, TapCommand, TapDirection};
use crate::context::{Connection, failure};
use crate::errors::{Exit, Failure};
use crate::output::{self, Format};

/// Proxies that are named in the line that says who is looked at.
const NAMED: usize = 4;

/// What was shown, and what was not.
#[derive(Default)]
struct Count {
    shown: u64,
    left_out: u64,
    partial: bool,
}

pub async fn run(global: &Global, command: &TapCommand) -> Outcome {
    if matches!(global.output, Format::Yaml | Format::Name) {
        return Err(
            Failure::usage("requests are told one by one, as lines").fix("-o table, wide, json or jsonl")
        );
    }
    let request = TapRequest {
        tap: tap(global, command)?,
        cluster: command.cluster.clone(),
        seconds: command.time.as_secs().max(1),
    };
    let connection = Connection::open(global)?;
    let fails = |e| failure(&connection.name, &e);
    let client = connection.client().await?;
    let began = tokio::time::timeout(global.timeout, client.tap(&request)).await.map_err(|_| {
        Failure::new(Exit::TimedOut, "E3008", format!("{}: the tap did not begin in time", connection.name))
            .fix("try again, or give it longer with --timeout")
    })?;
    let mut events = std::pin::pin!(began.map_err(fails)?);
    let mut count = Count::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => {
                count.talk(global, "interrupted");
                return Ok(Exit::Interrupted);
            }
        };
        match event.transpose().map_err(fails)? {
            Some(TapEvent::Begun { proxies, until, warnings, .. }) => {
                talk(global, &begun(&proxies, until));
                warnings.iter().for_each(|warning| count.warn(&warning.code, &warning.message));
            }
            Some(TapEvent::Part(part)) => {
                if count.show(global, part, command.max) {
                    count.talk(global, "--max is reached");
                    break;
                }
            }
            Some(TapEvent::Warning(warning)) => count.warn(&warning.code, &warning.message),
            Some(TapEvent::Ended { why }) => {
                count.talk(global, &why);
                break;
            }
            None => {
                let what = format!("{}: the tap broke off", connection.name);
                return Err(Failure::new(Exit::Unreachable, "E3001", what).fix("begin again"));
            }
        }
    }
    Ok(if count.partial { Exit::Partial } else { Exit::Done })
}

/// What the command line means.
fn tap(global: &Global, command: &TapCommand) -> Result<Tap, Failure> {
    let target = match &command.target {
        Some(target) => target_of(global, target)?,
        None => Target::Everybody,
    };
    let direction = command.direction.map(|direction| match direction {
        TapDirection::Inbound => Direction::Inbound,
        TapDirection::Outbound => Direction::Outbound,
    });
    let filter = Filter {
        direction,
        method: command.method.clone(),
        path_prefix: command.path_prefix.clone(),
        status: command.status,
        to: command.to.as_deref().map(|name| qualified(global, name)).transpose()?,
        from: command.from.clone(),
        refused: command.refused,
        cross_cluster: command.cross_cluster,
    };
    Ok(Tap { target, filter, rate: command.rate, query: command.query })
}

fn target_of(global: &Global, text: &str) -> Result<Target, Failure> {
    match text.split_once('/') {
        Some(("service", name)) => Ok(Target::Service(qualified(global, name)?)),
        Some(("proxy", name)) => {
            let name: NodeName =
                name.parse().map_err(|e: hanse_identity::NameError| Failure::usage(e.to_string()))?;
            Ok(Target::Proxy(name))
        }
        _ => Err(Failure::usage(format!("{text:?} is no target: service/NAME or proxy/NAME"))
            .fix("hanse service list, hanse proxy list")),
    }
}

fn begun(proxies: &[NodeName], until: Timestamp) -> String {
    let mut names: Vec<String> = proxies.iter().take(NAMED).map(ToString::to_string).collect();
    if proxies.len() > NAMED {
        names.push(format!("{} more", proxies.len() - NAMED));
    }
    format!("looking at {}, for {}; Ctrl-C ends it", names.join(", "), output::left(until))
}

impl Count {
    /// Prints what one proxy told; whether that is enough.
    fn show(&mut self, global: &Global, part: TapPart, most: Option<u64>) -> bool {
        self.left_out += part.left_out;
        for request in &part.requests {
            let line = if global.output.is_json() {
                json_line(&part.proxy, request).to_string()
            } else {
                text_line(&part.proxy, request, global.output == Format::Wide)
            };
            output::data(&format!("{line}\n"));
            self.shown += 1;
            if most.is_some_and(|most| self.shown >= most) {
                return true;
            }
        }
        false
    }

    fn warn(&mut self, code: &str, message: &str) {
        self.partial = true;
        eprintln!("warning {code} {message}");
    }

    fn talk(&self, global: &Global, why: &str) {
        let left_out = match self.left_out {
            0 => String::new(),
            n => format!(", {n} left out (more than --rate of a proxy, or a reader that was too slow)"),
        };
        talk(global, &format!("{} shown{left_out}: {why}", self.shown));
    }
}

/// As the control node told it, with times of this command line's contract.
fn json_line(proxy: &NodeName, request: &Request) -> Value {
    let mut line = json!(request);
    line["proxy"] = json!(proxy);
    line["startTime"] = json!(request.start_time.to_string());
    line["secured"] = json!(is_secured(request));
    line
}

/// Both ends have shown who they are: that is mutual TLS 1.3.
fn is_secured(request: &Request) -> bool {
    !request.source.is_empty() && !request.destination.is_empty()
}

/// `10:03:11.204  reviews-1 in   west/productpage > east/reviews  GET /r/7  200  7.3ms …`. Control nodes have taken out what a
/// terminal would obey.
fn text_line(proxy: &NodeName, request: &Request, wide: bool) -> String {
    let whole = request.start_time.to_string();
    let time = whole.split_once('T').map_or(whole.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let way = if request.direction == Direction::Inbound { "in " } else { "out" };
    let source = super::traffic::end(&request.source_cluster, &request.source);
    let destination = match request.destination.is_empty() {
        true => request.destination_cluster.clone(),
        false => super::traffic::end(&request.destination_cluster, &request.destination),
    };
    let or_unknown = |name: String| if name.is_empty() { "?".to_owned() } else { name };
    let query = request.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    let code = if request.response_code == 0 { "-".to_owned() } else { request.response_code.to_string() };
    let mut parts = vec![
        format!("{time}  {proxy} {way}"),
        format!("{} > {}", or_unknown(source), or_unknown(destination)),
        request.service.clone(),
        format!("{} {}{query}", request.method, request.path),
        code,
        format!("{:.1}ms", request.duration_micros as f64 / 1000.0),
    ];
    if request.response_flags != "-" {
        parts.push(request.response_flags.clone());
    }
    parts.push(request.reason.clone());
    if request.failover {
        parts.push(format!("failover to {}", request.tier));
    } else {
        parts.push(request.tier.clone());
    }
    if request.attempts > 1 {
        parts.push(format!("{} attempts", request.attempts));
    }
    if is_secured(request) {
        parts.push("mTLS".to_owned());
    }
    if !request.trace_id.is_empty() {
        parts.push(format!("trace {}", request.trace_id));
    }
    if wide {
        let named = [
            ("host", &request.authority),
            ("from", &request.source),
            ("to", &request.destination),
            ("policy", &request.policy),
            ("details", &request.response_code_details),
        ];
        let named = named.into_iter().filter(|(_, value)| !value.is_empty());
        parts.extend(named.map(|(name, value)| format!("{name} {value}")));
        parts.push(format!("{} bytes in, {} out", request.bytes_received, request.bytes_sent));
        parts.extend(request.headers.iter().map(|(name, value)| format!("{name}: {value}")));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(line: &str) -> Result<Tap, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|e| e.to_string())?;
        let Command::Tap(command) = cli.command else { panic!("{line}") };
        tap(&cli.global, &command).map_err(|e| e.message)
    }

    #[test]
    fn a_command_line_says_whose_requests_and_which() {
        let tap = asked(
            "hanse tap service/reviews -n shop --status 5xx --method GET --from shop/web --rate 7 -o text",
        )
        .unwrap();
        assert_eq!(tap.target, Target::Service("shop/reviews".parse().unwrap()));
        assert_eq!(
            tap.to_string(),
            "service/shop/reviews, from /ns/shop/sa/web, GET, status 5xx, 7 a second"
        );
        let everybody =
            asked("hanse tap --to shop/reviews --cross-cluster --query --path-prefix /r").unwrap();
        assert_eq!(
            everybody.to_string(),
            "every proxy, to shop/reviews, path /r*, between clusters, with queries, 50 a second"
        );
        let proxy = asked("hanse tap proxy/reviews-1 --direction inbound --refused").unwrap();
        assert_eq!(proxy.to_string(), "proxy/reviews-1, inbound only, refused, 50 a second");
        for wrong in [
            "hanse tap",
            "hanse tap reviews",
            "hanse tap pod/reviews-1",
            "hanse tap proxy/Reviews_1",
            "hanse tap service/a/b/c",
            "hanse tap service/a/b --status 7xx",
            "hanse tap service/a/b --rate 0",
            "hanse tap service/a/b --from nobody",
        ] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_one_line() {
        let proxy: NodeName = "productpage-1".parse().unwrap();
        let request = Request {
            start_time: Timestamp(1_700_000_000_204),
            direction: Direction::Outbound,
            method: "GET".to_owned(),
            path: "/r/7".to_owned(),
            response_code: 503,
            response_flags: "UH".to_owned(),
            reason: "no-healthy-upstream".to_owned(),
            duration_micros: 7340,
            service: "shop/reviews".to_owned(),
            source: "spiffe://west.example/ns/shop/sa/productpage".to_owned(),
            source_cluster: "west".to_owned(),
            attempts: 2,
            ..Request::default()
        };
        assert_eq!(
            text_line(&proxy, &request, false),
            "22:13:20.204  productpage-1 out  west/productpage > ?  shop/reviews  GET /r/7  503  7.3ms  UH  \
             no-healthy-upstream  2 attempts"
        );
        let answered = Request {
            destination: "spiffe://east.example/ns/shop/sa/reviews".to_owned(),
            destination_cluster: "east".to_owned(),
            response_flags: "-".to_owned(),
            reason: String::new(),
            tier: "remote".to_owned(),
            failover: true,
            attempts: 1,
            query: Some("page=1".to_owned()),
            trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
            response_code: 200,
            ..request
        };
        let line = text_line(&proxy, &answered, false);
        assert!(
            line.contains("west/productpage > east/reviews  shop/reviews  GET /r/7?page=1  200  7.3ms"),
            "{line}"
        );
        assert!(line.ends_with("failover to remote  mTLS  trace 0af7651916cd43dd8448eb211c80319c"), "{line}");
        assert!(
            text_line(&proxy, &answered, true).contains("from spiffe://west.example/ns/shop/sa/productpage")
        );
        let json = json_line(&proxy, &answered);
        assert_eq!((&json["proxy"], &json["secured"]), (&json!("productpage-1"), &json!(true)));
        assert_eq!(json["startTime"], "2023-11-14T22:13:20.204Z");
    }
}
