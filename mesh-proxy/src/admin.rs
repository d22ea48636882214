//! What an operator on this machine is shown: configuration, certificates, policy, connections, and why a denial was one.
//! Trusts the admin port to answer only callers of this machine (mesh-runtime).
//! Never shows a key, and never changes anything: a signal ends the proxy, a file changes its policy.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, StatusCode};
use mesh_identity::Bundle;
use mesh_policy::Mode;
use mesh_runtime::admin::{Admin, Answer, Ask};
use mesh_runtime::drain::DrainWatch;
use mesh_tls::IdentityCell;
use serde::Serialize;
use tokio::sync::watch;

use crate::config::ProxyConfig;
use crate::connections::Registry;
use crate::explanations::{Explanations, KEPT};
use crate::policy::Policies;

/// What the pages are made of. Clones are handles.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) identity: watch::Receiver<Option<IdentityCell>>,
    pub(crate) policies: Policies,
    pub(crate) connections: Registry,
    pub(crate) drain: DrainWatch,
    pub(crate) explanations: Explanations,
}

type Page = fn(&Pages, &Ask) -> Answer;

/// The pages, by path.
const PAGES: [(&str, Page); 6] = [
    ("/config_dump", Pages::config),
    ("/certs", Pages::certs),
    ("/policy", Pages::policy),
    ("/connections", Pages::connections),
    ("/drain", Pages::drain),
    ("/explain/", Pages::explain),
];

impl Pages {
    /// Adds the pages to the admin port. They are read and never written to.
    pub(crate) fn add_to(&self, admin: Admin) -> Admin {
        PAGES.into_iter().fold(admin, |admin, (path, page)| {
            let pages = self.clone();
            admin.route(path, move |ask| match ask.method {
                Method::GET | Method::HEAD => page(&pages, &ask),
                _ => Answer::text(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "pages are only read; SIGTERM drains and ends the proxy\n",
                ),
            })
        })
    }

    fn config(&self, _: &Ask) -> Answer {
        #[derive(Serialize)]
        struct Dump<'a> {
            version: &'static str,
            config: &'a ProxyConfig,
        }
        Answer::json(&Dump {
            version: env!("CARGO_PKG_VERSION"),
            config: &self.config,
        })
    }

    fn certs(&self, _: &Ask) -> Answer {
        let Some(cell) = self.identity.borrow().clone() else {
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, "no identity yet\n");
        };
        let identity = cell.current();
        let svid = identity.svid();
        Answer::json(&Certificates {
            identity: Certificate {
                id: Some(svid.id().to_string()),
                serial: Some(svid.serial().to_owned()),
                key_id: None,
                not_before: seconds(svid.not_before()),
                not_after: seconds(svid.not_after()),
            },
            chain_pem: svid.to_pem(),
            bundles: identity
                .bundles()
                .iter()
                .map(|bundle| Trusted::of(bundle))
                .collect(),
        })
    }

    fn policy(&self, _: &Ask) -> Answer {
        let snapshot = self.policies.current();
        let policy = &snapshot.policy;
        Answer::json(&InForce {
            ready: policy.is_ready(),
            generation: snapshot.generation,
            revision: &snapshot.revision,
            rules: policy
                .inventory()
                .map(|rule| Rule {
                    policy: rule.policy,
                    rule: rule.rule,
                    action: rule.action.to_string(),
                    mode: match rule.mode {
                        Mode::Enforce => "Enforce",
                        Mode::Shadow => "Shadow",
                    },
                })
                .collect(),
            unenforceable: policy
                .unenforceable()
                .iter()
                .map(ToString::to_string)
                .collect(),
            issuers: policy
                .jwt_rules()
                .iter()
                .map(|rule| rule.issuer.as_str())
                .collect(),
        })
    }

    fn connections(&self, _: &Ask) -> Answer {
        Answer::json(&self.connections.list())
    }

    fn drain(&self, _: &Ask) -> Answer {
        #[derive(Serialize)]
        struct State {
            draining: bool,
            open: usize,
        }
        Answer::json(&State {
            draining: self.drain.stop_accepting().is_cancelled(),
            open: self.connections.count(),
        })
    }

    fn explain(&self, ask: &Ask) -> Answer {
        let id = ask.path.strip_prefix("/explain/").unwrap_or_default();
        match self.explanations.find(id) {
            Some(kept) => Answer::json(&kept),
            None => Answer::text(
                StatusCode::NOT_FOUND,
                format!(
                    "not one of the last {KEPT} denials of this proxy; the access log has its line\n"
                ),
            ),
        }
    }
}

#[derive(Serialize)]
struct Certificates {
    identity: Certificate,
    /// Certificates only; the key has no text form.
    chain_pem: String,
    bundles: Vec<Trusted>,
}

#[derive(Serialize)]
struct Certificate {
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    /// Seconds since 1970.
    not_before: u64,
    not_after: u64,
}

#[derive(Serialize)]
struct Trusted {
    trust_domain: String,
    authorities: Vec<Certificate>,
}

impl Trusted {
    fn of(bundle: &Bundle) -> Self {
        let authorities = bundle.x509_authorities().iter();
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            authorities: authorities
                .map(|authority| Certificate {
                    id: authority.id().map(ToString::to_string),
                    serial: None,
                    key_id: Some(authority.subject_key_id().to_owned()),
                    not_before: seconds(authority.not_before()),
                    not_after: seconds(authority.not_after()),
                })
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct InForce<'a> {
    /// Whether a policy was ever read; before that everything is denied.
    ready: bool,
    generation: u64,
    revision: &'a str,
    rules: Vec<Rule<'a>>,
    unenforceable: Vec<String>,
    issuers: Vec<&'a str>,
}

#[derive(Serialize)]
struct Rule<'a> {
    policy: &'a str,
    rule: &'a str,
    action: String,
    mode: &'static str,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
