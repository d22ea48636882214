//! Decides how the command line calls a running agent, and what a failed call means for the exit code.
//! Trusts nothing in an answer: it is parsed whole before any of it is shown or written.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mesh_identity::TrustDomain;
use mesh_runtime::{
    addresses::socket_path,
    cli::{Exit, Output, print},
    errors::{ErrorChain, Report, untrusted},
    files,
};
use proto::{
    convert::workload::X509Context,
    finial::explain::v1::{ExplainProcessRequest, explain_client::ExplainClient},
    grpc::health::v1::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    },
    spiffe::workload::{
        JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest,
        spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{ExplainArgs, SocketArgs, show};
use crate::NO_IDENTITY;

/// More of standard input is not read: no token is longer.
const LONGEST_TOKEN: u64 = 64 * 1024;

pub(super) async fn connect(socket: &str, within: Duration) -> Result<Channel, Exit> {
    let Some(path) = socket_path(socket) else {
        eprintln!(
            "error: {} is not a socket: an absolute path or unix:///path is wanted",
            untrusted(socket)
        );
        return Err(Exit::Usage);
    };
    let shown = path.display().to_string();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://agent").connect_timeout(within);
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let report = Report::new("FNL2101", format!("no agent answers at {shown}")).note(ErrorChain(&error).to_string());
        eprint!("{}", report.fix("workload-agent healthcheck --socket PATH   (is it running, and is this its socket?)").render());
        Exit::Unreachable
    })
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "workload.spiffe.io",
        tonic::metadata::MetadataValue::from_static("true"),
    );
    request
}

pub(super) fn failed(status: &Status) -> Exit {
    let said = untrusted(status.message());
    match status.code() {
        Code::PermissionDenied if said.contains(NO_IDENTITY) => {
            let report = Report::new(NO_IDENTITY, "no identity for this process").note(said);
            let fix = format!(
                "workload-agent explain --pid {}   (as an administrator of this node)",
                std::process::id()
            );
            eprint!("{}", report.fix(fix).render());
            Exit::No
        }
        Code::PermissionDenied => {
            eprintln!("error: not allowed: {said}");
            Exit::NotAllowed
        }
        Code::Unavailable => {
            eprint!(
                "{}",
                Report::new("FNL2102", "the agent cannot answer now")
                    .note(said)
                    .render()
            );
            Exit::Unreachable
        }
        Code::NotFound => {
            eprintln!("error: {said}");
            Exit::No
        }
        code => {
            eprintln!("error: the agent answered {code:?}: {said}");
            Exit::Failed
        }
    }
}

pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Exit>>,
) -> Result<T, Exit> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        eprintln!("error: no answer within {limit:?}");
        Err(Exit::TimedOut)
    })
}

pub(super) fn code(outcome: Result<Exit, Exit>) -> Exit {
    outcome.unwrap_or_else(|code| code)
}

pub(super) async fn healthcheck(args: SocketArgs) -> Exit {
    let limit = args.timeout.get();
    code(
        within(limit, async {
            let channel = connect(&args.socket, limit).await?;
            let answer = HealthClient::new(channel)
                .check(HealthCheckRequest::default())
                .await;
            match answer.map(|answer| answer.into_inner().status()) {
                Ok(ServingStatus::Serving) => {
                    println!("ok: the agent serves identities");
                    Ok(Exit::Done)
                }
                Ok(_) => {
                    eprint!(
                        "{}",
                        Report::new("FNL2103", "the agent runs but cannot serve identities yet")
                            .render()
                    );
                    Ok(Exit::No)
                }
                Err(status) => Err(failed(&status)),
            }
        })
        .await,
    )
}

pub(super) async fn fetch(args: SocketArgs, write: Option<PathBuf>, output: Output) -> Exit {
    let limit = args.timeout.get();
    let first = async {
        let mut client = SpiffeWorkloadApiClient::new(connect(&args.socket, limit).await?)
            .max_decoding_message_size(64 << 20);
        let mut stream = client
            .fetch_x509svid(with_header(X509svidRequest {}))
            .await
            .map_err(|s| failed(&s))?
            .into_inner();
        stream
            .message()
            .await
            .map_err(|s| failed(&s))?
            .ok_or_else(|| failed(&Status::unavailable("no message")))
    };
    code(
        within(limit, first)
            .await
            .and_then(read)
            .and_then(|context| {
                if let Some(dir) = &write {
                    write_files(dir, &context).map_err(|error| {
                        eprint!(
                            "{}",
                            Report::new("FNL2105", format!("{} cannot be written", dir.display()))
                                .note(error.to_string())
                                .render()
                        );
                        Exit::Failed
                    })?;
                }
                Ok(print(&show::context(&context, output, write.as_deref())))
            }),
    )
}

pub(super) async fn fetch_jwt(
    args: SocketArgs,
    audience: Vec<String>,
    spiffe_id: String,
    output: Output,
) -> Exit {
    let limit = args.timeout.get();
    let ask = JwtsvidRequest {
        audience,
        spiffe_id,
    };
    let answer = within(limit, async {
        let mut client = SpiffeWorkloadApiClient::new(connect(&args.socket, limit).await?);
        let answer = client.fetch_jwtsvid(with_header(ask)).await;
        answer.map_err(|status| failed(&status))
    });
    code(
        answer
            .await
            .map(|answer| print(&show::tokens(&answer.into_inner().svids, output))),
    )
}

/// A token that does not prove anything ends with [`Exit::No`].
pub(super) async fn validate_jwt(
    args: SocketArgs,
    audience: String,
    svid: String,
    output: Output,
) -> Exit {
    let limit = args.timeout.get();
    let svid = match svid.as_str() {
        "-" => match io::read_to_string(io::stdin().take(LONGEST_TOKEN)) {
            Ok(text) => text.trim_end().to_owned(),
            Err(error) => {
                eprintln!("error: the token cannot be read from standard input: {error}");
                return Exit::Failed;
            }
        },
        _ => svid,
    };
    let ask = ValidateJwtsvidRequest { audience, svid };
    let answer = within(limit, async {
        let mut client = SpiffeWorkloadApiClient::new(connect(&args.socket, limit).await?);
        match client.validate_jwtsvid(with_header(ask)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) if status.code() == Code::InvalidArgument => {
                eprintln!("the token is refused: {}", untrusted(status.message()));
                Err(Exit::No)
            }
            Err(status) => Err(failed(&status)),
        }
    });
    code(
        answer
            .await
            .map(|proven| print(&show::proven(&proven, output))),
    )
}

pub(super) async fn watch(args: SocketArgs, output: Output) -> Exit {
    let limit = args.timeout.get();
    let opened = within(limit, async {
        let mut client = SpiffeWorkloadApiClient::new(connect(&args.socket, limit).await?)
            .max_decoding_message_size(64 << 20);
        client
            .fetch_x509svid(with_header(X509svidRequest {}))
            .await
            .map(|r| r.into_inner())
            .map_err(|s| failed(&s))
    });
    let mut stream = match opened.await {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    loop {
        let shown = tokio::select! {
            _ = tokio::signal::ctrl_c() => return Exit::Interrupted,
            message = stream.message() => match message {
                Ok(Some(message)) => read(message).map(|context| print(&show::context(&context, output, None))),
                Ok(None) => Err(failed(&Status::unavailable("the agent ended the stream"))),
                Err(status) => Err(failed(&status)),
            },
        };
        match shown {
            Ok(Exit::Done) => {}
            Ok(code) | Err(code) => return code,
        }
    }
}

fn read(message: proto::spiffe::workload::X509svidResponse) -> Result<X509Context, Exit> {
    X509Context::try_from(message).map_err(|error| {
        eprint!(
            "{}",
            Report::new("FNL2106", "the agent's answer cannot be used")
                .note(ErrorChain(&error).to_string())
                .render()
        );
        Exit::Failed
    })
}

/// Each file whole: a reader sees the old one or the new one.
fn write_files(dir: &Path, context: &X509Context) -> io::Result<()> {
    let public = |name: &str, pem: &str| files::replace(&dir.join(name), 0o644, pem.as_bytes());
    fs::create_dir_all(dir)?;
    for (n, identity) in context.identities().iter().enumerate() {
        public(&format!("svid.{n}.pem"), &identity.svid.to_pem())?;
        files::replace(
            &dir.join(format!("svid.{n}.key")),
            files::PRIVATE,
            &crate::vault::key_pem(&identity.key),
        )?;
        if let Some(bundle) = context.bundles().get(identity.svid.id().trust_domain()) {
            public(&format!("bundle.{n}.pem"), &bundle.to_pem())?;
        }
    }
    let own = context
        .identities()
        .first()
        .map(|identity| identity.svid.id().trust_domain().clone());
    let foreign = context
        .bundles()
        .iter()
        .filter(|bundle| Some(bundle.trust_domain()) != own.as_ref());
    for bundle in foreign {
        let domain: &TrustDomain = bundle.trust_domain();
        public(&format!("federated.{domain}.pem"), &bundle.to_pem())?;
    }
    Ok(())
}

pub(super) async fn explain(args: ExplainArgs, output: Output) -> Exit {
    let limit = args.timeout.get();
    code(
        within(limit, async {
            let channel = connect(&args.admin_socket, limit).await?;
            let answer = ExplainClient::new(channel)
                .explain_process(ExplainProcessRequest { pid: args.pid })
                .await;
            let answer = answer.map_err(|status| failed(&status))?.into_inner();
            let has_identity = !answer.matching_entries.is_empty();
            print(&show::explanation(args.pid, &answer, output));
            Ok(if has_identity { Exit::Done } else { Exit::No })
        })
        .await,
    )
}
