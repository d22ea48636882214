//! Policy from a local file: looked at five times a second, taken whole or not at all.
//! Trusts nothing in the file; a file that is still being written is left until it is quiet.
//! Never drops the policy in force because a newer one is bad or the file is gone.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_identity::JwtAuthority;
use mesh_policy::{CompiledPolicy, Door, KeySource, PolicyErrors, PolicySet, Protocol, Workload};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::readiness::Part;
use mesh_runtime::tasks::Stop;

use crate::identity::tokens::JwtBundles;
use crate::keys::WebKeys;
use crate::metrics::ProxyMetrics;
use crate::policy::Policies;
use crate::record::Recorder;
use crate::token::Issuers;

/// How often the file is looked at. A change is in force after two looks at most.
const LOOK: Duration = Duration::from_millis(100);
/// More than any policy file may have, see FNL0509.
const LARGEST: u64 = 16 * 1024 * 1024;

/// Why a policy file was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The file cannot be read.
    #[error("the policy file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file was read and refused.
    #[error("the policy file {path} is refused")]
    Refused {
        /// The file.
        path: PathBuf,
        /// The text that was refused, to show the lines.
        text: String,
        /// Every problem.
        #[source]
        cause: PolicyErrors,
    },
}

impl Coded for FeedError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "FNL3050",
            Self::Refused { .. } => "FNL3051",
        }
    }
}

/// Reads a policy file once, for `validate` and for the loop below.
///
/// # Errors
/// When the file cannot be read, or with every problem that is in it.
pub fn read(path: &Path) -> Result<(PolicySet, String), FeedError> {
    let unreadable = |cause| FeedError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    let text = read_text(path).map_err(unreadable)?;
    match PolicySet::from_yaml(&text) {
        Ok(set) => Ok((set, text)),
        Err(cause) => Err(FeedError::Refused {
            path: path.to_owned(),
            text,
            cause,
        }),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(LARGEST)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Look {
    fn at(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: meta.modified().ok(),
            length: meta.len(),
            inode: meta.ino(),
        })
    }
}

/// All that a policy is made of, as it looks from outside.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    files: Vec<Option<Look>>,
    web_keys: u64,
    jwt_bundles: u64,
}

pub(crate) struct Feed {
    pub(crate) path: PathBuf,
    pub(crate) protocol: Protocol,
    pub(crate) workload: Option<Workload>,
    pub(crate) policies: Policies,
    pub(crate) web_keys: WebKeys,
    pub(crate) jwt_bundles: JwtBundles,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) recorder: Recorder,
    pub(crate) clock: Clock,
}

impl Feed {
    /// Watches the file until stopped.
    pub(crate) async fn run(self, ready: Part, stop: Stop) -> Result<(), Infallible> {
        let mut ready = Some(ready);
        // What was last read, good or bad; what was last seen: the policy file, the files of keys that it names, and fetched keys.
        let mut read: Option<Seen> = None;
        let mut seen = self.look();
        loop {
            let now = self.look();
            // Quiet since the last look, and not what was read: a writer that is not done is left alone.
            if now == seen && read.as_ref() != Some(&now) {
                let taken = self.take();
                // The files that count are those of the policy that is in force now.
                read = Some(self.look());
                if taken {
                    if let Some(part) = ready.take() {
                        part.done();
                    }
                } else if let Some(part) = &ready {
                    part.waiting_for("no policy could be read; everything is denied");
                }
            }
            seen = now;
            if stop.unless_stopped(self.clock.sleep(LOOK)).await.is_none() {
                return Ok(());
            }
        }
    }

    fn look(&self) -> Seen {
        let in_force = self.policies.current();
        let keys = in_force.policy.key_files().map(Path::new);
        let files = std::iter::once(self.path.as_path()).chain(keys);
        Seen {
            files: files.map(Look::at).collect(),
            web_keys: self.web_keys.version(),
            jwt_bundles: self.jwt_bundles.version(),
        }
    }

    /// Reads and puts in force; whether that was possible.
    fn take(&self) -> bool {
        match read(&self.path) {
            Ok((set, text)) => {
                self.publish(&set, &text);
                true
            }
            Err(error) => {
                let in_force = self.policies.current();
                let kept = if in_force.policy.is_ready() {
                    "the last good policy stays in force"
                } else {
                    "everything is denied"
                };
                tracing::error!(code = error.code(), error = %ErrorChain(&error), revision = %in_force.revision, "{kept}");
                if let FeedError::Refused { path, text, cause } = &error {
                    tracing::error!("\n{}", cause.render(&path.display().to_string(), text));
                }
                self.metrics.policy_rejected();
                self.recorder.policy_refused(
                    &self.path,
                    &in_force.revision,
                    error.code(),
                    &ErrorChain(&error).to_string(),
                );
                false
            }
        }
    }

    /// The keys of an issuer. Without them every token of his is refused.
    fn keys(&self, source: &KeySource, content: &mut String) -> Vec<JwtAuthority> {
        match source {
            KeySource::Inline(keys) => keys.clone(),
            KeySource::File(path) => self.keys_in(path, content),
            // Whoever fetches them reports when there are none.
            KeySource::Web(url) => match self.web_keys.get(url) {
                Some(fetched) => {
                    content.push_str(&fetched.text);
                    fetched.keys
                }
                None => Vec::new(),
            },
            KeySource::Domain(domain) => match self.jwt_bundles.get(domain) {
                Some((text, keys)) => {
                    content.push_str(&text);
                    keys
                }
                None => Vec::new(),
            },
        }
    }

    fn keys_in(&self, path: &str, content: &mut String) -> Vec<JwtAuthority> {
        let read = read_text(Path::new(path))
            .map_err(|error| error.to_string())
            .and_then(|text| {
                content.push_str(&text);
                mesh_identity::read_jwks(text.as_bytes()).map_err(|error| error.to_string())
            });
        read.unwrap_or_else(|error| {
            tracing::error!(
                code = "FNL3052",
                path,
                error,
                "no keys: every token of their issuer is refused"
            );
            content.push_str(&error);
            Vec::new()
        })
    }

    fn publish(&self, set: &PolicySet, text: &str) {
        let policy = CompiledPolicy::new(
            set,
            Door {
                protocol: self.protocol,
                workload: self.workload.as_ref(),
            },
        );
        // The keys belong to the content: new ones are a new revision.
        let mut content = text.to_owned();
        let issuers = Issuers::new(&policy, |source| self.keys(source, &mut content));
        let revision = revision_of(&content);
        let before = Arc::clone(&self.policies.current().revision);
        if before == revision {
            tracing::debug!(%revision, "the policy file was written again with the same content");
            return;
        }
        for rule in policy.unenforceable() {
            tracing::warn!(code = mesh_policy::Unenforceable::CODE, "{rule}");
        }
        let rules = policy.len();
        self.metrics
            .policy_applied(self.clock.now(), policy.unenforceable().len());
        let generation = self
            .policies
            .publish(policy, issuers, Arc::clone(&revision));
        self.recorder.policy_applied(&self.path, &before, &revision);
        tracing::info!(generation, %revision, policies = set.policies().len(), rules, "policy in force");
    }
}

/// A name for the content of a policy file. It tells revisions apart; it proves nothing.
fn revision_of(text: &str) -> Arc<str> {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish()).into()
}
