//! `mesh-testbed demo`: the mesh at work, told as a table. Called by `cargo xtask demo`.

mod config;
mod interrupt;
mod keep;
mod rules;
mod scene;
mod steps;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;

use scene::Scene;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Leave everything running and print commands to play with.
    #[arg(long)]
    keep: bool,
    /// Remove what `--keep` left running.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
    /// Where scripts to play with are put.
    #[arg(long, default_value = "/tmp/mesh-demo")]
    scripts: PathBuf,
}

/// A step: says what it showed.
type Step = fn(&mut Scene) -> Result<String>;

/// What one step showed.
struct Shown {
    what: &'static str,
    result: Result<String>,
    time: std::time::Duration,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.clean {
        return keep::clean();
    }
    keep::refuse_second()?;
    interrupt::guarded(move || perform(&args))
}

fn perform(args: &Args) -> Result<()> {
    let start = Instant::now();
    let mut shown = Vec::new();
    let mut scene = step(&mut shown, "pods and servers", Scene::set)?;
    let steps: [(&str, Step); 8] = [
        ("without a mesh", steps::without_mesh),
        ("the agent starts", steps::start_agent),
        ("canary 90/10", steps::canary),
        ("header end-user: jason", steps::header),
        ("TCP, in the kernel", steps::tcp_in_kernel),
        ("a pod not enrolled", steps::outsider),
        ("weights change live", steps::reload),
        ("iptables, nft", steps::no_rules),
    ];
    for (what, work) in steps {
        step_on(&mut shown, what, || work(&mut scene));
        if scene.agent.is_none() && failed(&shown) > 0 {
            // Nothing that follows can be shown.
            break;
        }
    }
    if args.keep && failed(&shown) == 0 {
        table(&shown, start);
        return keep::hold(&scene, &args.scripts);
    }
    if scene.agent.is_some() {
        step_on(&mut shown, "the agent stops", || {
            steps::stop_agent(&mut scene)
        });
    }
    let name = scene.name();
    let cleaned = Instant::now();
    drop(scene);
    shown.push(Shown {
        what: "clean-up",
        result: steps::nothing_left(&name),
        time: cleaned.elapsed(),
    });
    table(&shown, start);
    match failed(&shown) {
        0 => Ok(()),
        failed => bail!(
            "{failed} of {} steps did not show what they should",
            shown.len()
        ),
    }
}

fn failed(shown: &[Shown]) -> usize {
    shown.iter().filter(|one| one.result.is_err()).count()
}

/// A step without which there is no demo.
fn step<T>(
    shown: &mut Vec<Shown>,
    what: &'static str,
    work: impl FnOnce() -> Result<(T, String)>,
) -> Result<T> {
    let start = Instant::now();
    let (value, said) = work()?;
    shown.push(Shown {
        what,
        result: Ok(said),
        time: start.elapsed(),
    });
    Ok(value)
}

fn step_on(shown: &mut Vec<Shown>, what: &'static str, work: impl FnOnce() -> Result<String>) {
    if interrupt::interrupted() {
        return;
    }
    eprintln!("demo: {what}");
    let start = Instant::now();
    let result = work();
    if let Err(error) = &result {
        eprintln!("demo: {what}: {error:#}");
    }
    shown.push(Shown {
        what,
        result,
        time: start.elapsed(),
    });
}

fn table(shown: &[Shown], start: Instant) {
    if interrupt::interrupted() {
        return;
    }
    println!();
    for one in shown {
        let (mark, text) = match &one.result {
            Ok(text) => ("ok", text.clone()),
            Err(error) => ("FAILED", first_line(&error.to_string())),
        };
        println!(
            "{mark:<7}{:<24}{:>8.3} s  {text}",
            one.what,
            one.time.as_secs_f64()
        );
    }
    println!("{:<31}{:>8.3} s", "all", start.elapsed().as_secs_f64());
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
