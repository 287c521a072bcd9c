//! hanse: every role, the command line and the demo, in one binary.
//!
//! `cli` declares what can be typed, `commands` and `demo` do it, `output` and `errors` say how it went. The
//! roles themselves live in their own crates; here they are only started.

pub mod capture;
pub mod cli;
pub mod client;
pub mod commands;
pub mod context;
pub mod demo;
pub mod errors;
pub mod memory;
pub mod output;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, Global, ProxyVerb};
use commands::Outcome;
use demo::cli::DemoCommand;
use errors::{Exit, Failure};

/// The clock, read.
pub fn now() -> hanse_identity::Timestamp {
    hanse_control::io::keys::now()
}

/// Everything between the command line and the exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    start_logging(&cli);
    die_with_stdin();
    if let Err(failure) = memory::keep(&cli.command) {
        failure.print(cli.global.output.is_json());
        return ExitCode::from(failure.exit as u8);
    }
    let json = cli.global.output.is_json();
    match dispatch(cli) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    let role = |result: anyhow::Result<()>| result.map(|()| Exit::Done).map_err(Failure::from);
    match command {
        Command::Control(config) => role(hanse_control::run::run(*config)),
        Command::Gateway(config) => role(hanse_gateway::run(*config)),
        Command::Agent(agent) => match (agent.verb, agent.config) {
            (Some(verb), _) => block_on(commands::agent::run(&global, &verb)),
            (None, Some(config)) => role(hanse_agent::run(config)),
            (None, None) => Err(incomplete("agent")),
        },
        Command::Proxy(proxy) => match (proxy.verb, proxy.config) {
            (Some(ProxyVerb::Capture(command)), _) => commands::capture::run(&global, &command),
            (Some(ProxyVerb::List), _) => block_on(commands::agent::proxies(&global)),
            (Some(ProxyVerb::Config { admin, part }), _) => {
                block_on(commands::proxy::config(&global, admin, part))
            }
            (None, Some(config)) => role(hanse_proxy::run(config)),
            (None, None) => Err(incomplete("proxy")),
        },
        Command::Demo(command) => match *command {
            DemoCommand::App(config) => role(demo::app::run(config)),
            DemoCommand::Wire(config) => role(demo::wire::run(config)),
            DemoCommand::Thief(config) => role(demo::thief::run(config)),
            DemoCommand::Envoy(launch) => role(demo::envoy::launch(launch)),
            command => block_on(demo::verbs::run(&global, command)),
        },
        Command::Node(command) => block_on(commands::node::run(&global, &command)),
        Command::Cluster(command) => block_on(commands::cluster::run(&global, &command)),
        Command::Service(command) => block_on(commands::service::run(&global, &command)),
        Command::Stat(command) => block_on(commands::traffic::stat(&global, &command)),
        Command::Edges(command) => block_on(commands::traffic::edges(&global, &command)),
        Command::Top(command) => block_on(commands::traffic::top(&global, &command)),
        Command::Tap(command) => block_on(commands::tap::run(&global, &command)),
        Command::Policy(command) => block_on(commands::policy::run(&global, &command)),
        Command::Revoke(command) => block_on(commands::revoke::run(&global, &command)),
        Command::Identity(command) => block_on(commands::identity::run(&global, &command)),
        Command::Workload(command) => block_on(commands::workload::run(&global, &command)),
        Command::Trust(command) => block_on(commands::trust::run(&global, &command)),
        Command::Audit(command) => block_on(commands::audit::run(&global, &command)),
        Command::Role(command) => block_on(commands::role::run(&global, &command)),
        Command::Context(command) => commands::context::run(&global, &command),
        Command::Version => {
            let version = serde_json::json!({ "version": env!("CARGO_PKG_VERSION") });
            output::print(global.output, "Version", &version, concat!(env!("CARGO_PKG_VERSION"), "\n"));
            Ok(Exit::Done)
        }
        Command::Help { topic } => help(&global, &topic),
    }
}

fn incomplete(role: &str) -> Failure {
    Failure::usage(format!("flags or a verb are missing: hanse {role} runs the role, or lists with a verb"))
        .fix(format!("hanse {role} --help"))
}

/// Runs a command of the CLI: one thread is enough for asking, the demo's load takes what there is.
fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Bug, "E9002", format!("cannot start a runtime: {e}")))?;
    runtime.block_on(command)
}

fn help(global: &Global, topic: &[String]) -> Outcome {
    if topic.first().is_some_and(|t| t == "exit-codes") {
        let items: Vec<_> = errors::TABLE
            .iter()
            .map(|(code, meaning)| serde_json::json!({ "code": code, "meaning": meaning }))
            .collect();
        let meta = serde_json::json!({});
        output::Listing::of("ExitCodes", &meta, &items, &["CODE", "MEANING"], |item| {
            [item["code"].to_string(), item["meaning"].as_str().unwrap_or_default().to_owned()]
        })
        .print(global.output);
        return Ok(Exit::Done);
    }
    let mut command = Cli::command();
    command.build();
    let mut found = &mut command;
    for word in topic {
        found = found.find_subcommand_mut(word).ok_or_else(|| {
            Failure::usage(format!("there is no command or topic {word:?}"))
                .fix("hanse --help; hanse help exit-codes")
        })?;
    }
    output::data(&format!("{}\n", found.render_long_help().ansi()));
    Ok(Exit::Done)
}

/// Logs go to stderr. Roles say what they do; commands are quiet unless asked.
fn start_logging(cli: &Cli) {
    let is_role = match &cli.command {
        Command::Control(_) | Command::Gateway(_) => true,
        Command::Agent(agent) => agent.verb.is_none(),
        Command::Proxy(proxy) => proxy.verb.is_none(),
        Command::Demo(command) => matches!(**command, DemoCommand::App(_) | DemoCommand::Wire(_)),
        _ => false,
    };
    let level = match (is_role, cli.global.verbose) {
        (false, 0) => "error",
        (false, 1) | (true, 0) => "info",
        (_, 1) | (false, 2) => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // Fails only if a logger was set before, which then stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}

/// A child of the demo ends when its supervisor does: standard input is a pipe that the supervisor holds.
fn die_with_stdin() {
    if std::env::var_os(demo::process::DIE_WITH_STDIN).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let mut nothing = std::io::sink();
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut nothing);
        // The supervisor is gone: there is nobody to end politely for.
        std::process::exit(0);
    });
}
