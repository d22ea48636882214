//! `cargo dev`: the true programs as separate processes on one machine, with short lives and chosen ports.
//! The security path is production code; only lifetimes, ports and folders differ.
//! Plays the scene once; then, unless headless, stays and tells what happens until Ctrl-C.

pub mod app;
pub mod events;
pub mod files;
pub mod http;
mod mesh;
mod place;
pub mod process;
pub mod programs;
mod scene;

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use self::{
    events::{Event, Events},
    mesh::Mesh,
    place::Place,
};
use crate::cli::Up;

/// The whole headless scene, from start to the last process gone.
const HEADLESS_LIMIT: Duration = Duration::from_secs(20);

/// Why dev mode did not come to its good end.
#[derive(Debug, Error)]
pub(crate) enum DevError {
    /// No place to work.
    #[error("dev mode has no place to work")]
    Place(#[from] place::PlaceError),
    /// A program is not there.
    #[error("a program of the mesh is missing")]
    Program(#[from] mesh::ProgramError),
    /// A daemon did not start.
    #[error("a daemon did not start")]
    Process(#[from] process::ProcessError),
    /// A line of the scene did not come true.
    #[error("the scene failed at \"{line}\": {because}")]
    Scene {
        /// What should have been.
        line: &'static str,
        /// What was instead.
        because: String,
    },
    /// The system refused something that dev mode itself needs.
    #[error("the system refused {what}")]
    System {
        /// What we wanted.
        what: &'static str,
        /// What it said.
        #[source]
        cause: std::io::Error,
    },
    /// The headless scene took too long.
    #[error("the headless scene took longer than 20 s")]
    TooSlow,
}

/// Runs `finial dev up`.
pub(crate) fn main(options: Up) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(cause) => {
            return failed(&DevError::System {
                what: "an async runtime",
                cause,
            });
        }
    };
    match runtime.block_on(up(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &DevError) -> ExitCode {
    let mut text = format!("error[FNL9001]: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        write!(text, "\n  because {error}").ok();
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}

async fn up(options: Up) -> Result<(), DevError> {
    let events = Events::new(options.output);
    // Headless runs may stand beside each other and beside a person's.
    let name = if options.once {
        format!("once-{}", std::process::id())
    } else {
        "dev".into()
    };
    let programs = mesh::programs()?;
    let mut stop = Stop::listen()?;
    let place = Place::take(&options.dir, &name, options.keep)?;
    let played = async {
        let mut mesh = Mesh::start(&place, &programs, events).await?;
        let result = scene::play(&mut mesh, events).await;
        if result.is_ok() && !options.once {
            scene::stay(&mut mesh, events).await;
        }
        let ended = mesh.stop().await;
        result.and(ended)
    };
    let limit = if options.once {
        HEADLESS_LIMIT
    } else {
        Duration::MAX
    };
    let outcome = tokio::select! {
        played = timeout(limit, played) => played.unwrap_or(Err(DevError::TooSlow)),
        () = stop.wanted() => Ok(()),
    };
    if options.keep {
        let text = format!(
            "configuration, logs and state are in {}",
            place.path().display()
        );
        events.say(&Event {
            event: "dev.kept",
            who: "finial",
            what: "kept",
            text,
        });
    }
    outcome
}

/// Ctrl-C and SIGTERM.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, DevError> {
        let listen = |kind| {
            signal(kind).map_err(|cause| DevError::System {
                what: "a signal handler",
                cause,
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
