//! Decides what a configuration file of spiffe-helper means here: the same keys in the same HCL, and every rule between them.
//! Trusts nothing in it. Never guesses: an unknown key, a half-named set of files or a mode that lets others write is refused.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use mesh_runtime::{
    addresses::socket_path,
    errors::{Coded, untrusted},
};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{arguments, tell::Tell};

/// The longest file that is read.
const LONGEST: u64 = 256 * 1024;

/// Why a file is no configuration of the helper.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The operating system says no.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No HCL, or keys that nobody knows.
    #[error("{} is not a configuration of the helper: {why}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
    /// A value, or values that do not go together.
    #[error("{key}: {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Coded for OptionsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "FNL2032",
            Self::Syntax { .. } | Self::Value { .. } => "FNL2033",
        }
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    add_intermediates_to_bundle: bool,
    agent_address: String,
    cmd: String,
    cmd_args: String,
    pid_file_name: String,
    cert_dir: String,
    cert_file_mode: Mode,
    key_file_mode: Mode,
    jwt_bundle_file_mode: Mode,
    jwt_svid_file_mode: Mode,
    include_federated_domains: bool,
    omit_expired: bool,
    renew_signal: String,
    daemon_mode: Option<bool>,
    health_checks: HealthChecks,
    hint: String,
    svid_file_name: String,
    svid_key_file_name: String,
    svid_bundle_file_name: String,
    jwt_svids: Vec<RawToken>,
    jwt_bundle_file_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HealthChecks {
    listener_enabled: bool,
    bind_port: u16,
    liveness_path: String,
    readiness_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawToken {
    jwt_audience: String,
    jwt_extra_audiences: Vec<String>,
    jwt_svid_file_name: String,
}

/// A mode as it is written: `0644` and `"0644"` are the same, in octal digits. A number comes here as its digits, without the first zero.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Mode {
    #[default]
    Absent,
    Digits(u32),
    Text(String),
}

/// What the helper does.
#[derive(Debug)]
pub struct Settings {
    pub(super) socket: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) daemon: bool,
    pub(super) x509: Option<X509Files>,
    pub(super) jwt_bundle: Option<(String, u32)>,
    pub(super) jwt_svids: Vec<JwtFile>,
    pub(super) hint: String,
    pub(super) tell: Tell,
    pub(super) health: Option<SocketAddr>,
}

/// The files of an X.509 identity.
#[derive(Debug)]
pub(super) struct X509Files {
    pub(super) svid: String,
    pub(super) key: String,
    pub(super) bundle: String,
    pub(super) cert_mode: u32,
    pub(super) key_mode: u32,
    pub(super) intermediates_to_bundle: bool,
    pub(super) federated: bool,
    pub(super) omit_expired: bool,
}

/// The file of a token.
#[derive(Clone, Debug)]
pub(super) struct JwtFile {
    pub(super) name: String,
    pub(super) audience: Vec<String>,
    pub(super) mode: u32,
}

impl Settings {
    /// Reads a file. What the command line says counts: whether to be a daemon always, the socket where the file names none.
    ///
    /// # Errors
    /// With the key that is wrong.
    pub fn read(path: &Path, daemon: Option<bool>, socket: &str) -> Result<Self, OptionsError> {
        let unreadable = |cause| OptionsError::Unreadable {
            path: path.to_owned(),
            cause,
        };
        let length = fs::metadata(path).map_err(unreadable)?.len();
        if length > LONGEST {
            return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let mut raw: Raw = hcl::from_str(&text).map_err(|error| OptionsError::Syntax {
            path: path.to_owned(),
            why: untrusted(&error.to_string()),
        })?;
        raw.daemon_mode = daemon.or(raw.daemon_mode);
        if raw.agent_address.is_empty() {
            socket.clone_into(&mut raw.agent_address);
        }
        raw.settle()
    }

    /// The names of all files.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let x509 = self.x509.iter();
        x509.flat_map(|files| [&files.svid, &files.key, &files.bundle])
            .chain(self.jwt_bundle.iter().map(|(name, _)| name))
            .chain(self.jwt_svids.iter().map(|file| &file.name))
            .cloned()
            .collect()
    }
}

fn value(key: &'static str, why: impl Into<String>) -> OptionsError {
    OptionsError::Value {
        key,
        why: why.into(),
    }
}

impl Raw {
    fn settle(self) -> Result<Settings, OptionsError> {
        let socket = socket_path(&self.agent_address).ok_or_else(|| {
            value(
                "agent_address",
                "an absolute path or unix:///path is wanted",
            )
        })?;
        if self.cert_dir.is_empty() {
            return Err(value("cert_dir", "the directory of the files is not named"));
        }
        let daemon = self.daemon_mode.unwrap_or(true);
        let (tell, health) = (self.tell(daemon)?, self.health(daemon)?);
        let settings = Settings {
            socket,
            folder: self.cert_dir.clone().into(),
            daemon,
            x509: self.x509()?,
            jwt_bundle: match self.jwt_bundle_file_name.is_empty() {
                true => None,
                false => Some((
                    file_name("jwt_bundle_file_name", &self.jwt_bundle_file_name)?,
                    self.jwt_bundle_file_mode
                        .read("jwt_bundle_file_mode", 0o600)?,
                )),
            },
            jwt_svids: self.tokens()?,
            hint: self.hint,
            tell,
            health,
        };
        let x509 = settings.x509.iter().count() * 3;
        let wanted = x509 + settings.jwt_bundle.iter().count() + settings.jwt_svids.len();
        if wanted == 0 {
            return Err(value(
                "svid_file_name",
                "no file is named: the three of X.509, jwt_svids or jwt_bundle_file_name",
            ));
        }
        if settings.names().len() != wanted {
            return Err(value("cert_dir", "two files have the same name"));
        }
        Ok(settings)
    }

    fn x509(&self) -> Result<Option<X509Files>, OptionsError> {
        let names = [
            ("svid_file_name", &self.svid_file_name),
            ("svid_key_file_name", &self.svid_key_file_name),
            ("svid_bundle_file_name", &self.svid_bundle_file_name),
        ];
        let missing: Vec<_> = names.iter().filter(|(_, name)| name.is_empty()).collect();
        match missing.as_slice() {
            [] => {}
            [_, _, _] => return Ok(None),
            [(key, _), ..] => {
                return Err(value(key, "all three files of X.509 are named, or none"));
            }
        }
        let [svid, key, bundle] = names.map(|(key, name)| file_name(key, name));
        Ok(Some(X509Files {
            svid: svid?,
            key: key?,
            bundle: bundle?,
            cert_mode: self.cert_file_mode.read("cert_file_mode", 0o644)?,
            key_mode: self.key_file_mode.read("key_file_mode", 0o600)?,
            intermediates_to_bundle: self.add_intermediates_to_bundle,
            federated: self.include_federated_domains,
            omit_expired: self.omit_expired,
        }))
    }

    fn tokens(&self) -> Result<Vec<JwtFile>, OptionsError> {
        let mode = self.jwt_svid_file_mode.read("jwt_svid_file_mode", 0o600)?;
        let tokens = self.jwt_svids.iter().map(|token| {
            if token.jwt_audience.is_empty() {
                return Err(value("jwt_svids", "jwt_audience is missing in one of them"));
            }
            let first = std::iter::once(&token.jwt_audience);
            Ok(JwtFile {
                name: file_name("jwt_svids", &token.jwt_svid_file_name)?,
                audience: first.chain(&token.jwt_extra_audiences).cloned().collect(),
                mode,
            })
        });
        tokens.collect()
    }

    fn tell(&self, daemon: bool) -> Result<Tell, OptionsError> {
        let signal = match self.renew_signal.as_str() {
            "" => None,
            name => Some(name.parse::<Signal>().map_err(|_| {
                value(
                    "renew_signal",
                    format!("{} is no signal, such as SIGHUP", untrusted(name)),
                )
            })?),
        };
        let arguments = arguments::cut(&self.cmd_args).map_err(|why| value("cmd_args", why))?;
        if !self.pid_file_name.is_empty() {
            if signal.is_none() {
                return Err(value(
                    "renew_signal",
                    "pid_file_name needs a signal to be sent",
                ));
            }
            if !daemon {
                return Err(value(
                    "pid_file_name",
                    "nobody is told when daemon_mode is false",
                ));
            }
        }
        if !daemon {
            return Ok(Tell::default());
        }
        if self.cmd.is_empty() && !self.cmd_args.is_empty() {
            return Err(value("cmd_args", "arguments without cmd"));
        }
        Ok(Tell {
            command: (!self.cmd.is_empty()).then(|| (self.cmd.clone(), arguments)),
            pid_file: (!self.pid_file_name.is_empty()).then(|| self.pid_file_name.clone().into()),
            signal,
        })
    }

    /// The checks of spiffe-helper, on the paths that it takes when none are named.
    fn health(&self, daemon: bool) -> Result<Option<SocketAddr>, OptionsError> {
        let checks = &self.health_checks;
        if !(checks.listener_enabled && daemon) {
            return Ok(None);
        }
        for (key, path, fixed) in [
            (
                "health_checks.liveness_path",
                &checks.liveness_path,
                "/live",
            ),
            (
                "health_checks.readiness_path",
                &checks.readiness_path,
                "/ready",
            ),
        ] {
            if !path.is_empty() && path != fixed {
                return Err(value(
                    key,
                    format!("the path is {fixed} here and cannot be another"),
                ));
            }
        }
        let port = match checks.bind_port {
            0 => 8081,
            port => port,
        };
        Ok(Some((Ipv4Addr::UNSPECIFIED, port).into()))
    }
}

/// One plain name: what lies in another folder could not change together with the rest.
fn file_name(key: &'static str, name: &str) -> Result<String, OptionsError> {
    if name.is_empty() {
        return Err(value(key, "a file is not named"));
    }
    if name.contains(['/', '\0']) || name.starts_with("..") || name == "." || name.len() > 200 {
        let why = "one file name is wanted, without a folder and not beginning with two dots";
        return Err(value(key, why));
    }
    Ok(name.to_owned())
}

impl Mode {
    fn read(&self, key: &'static str, absent: u32) -> Result<u32, OptionsError> {
        let digits = match self {
            Self::Absent | Self::Digits(0) => return Ok(absent),
            Self::Digits(digits) => digits.to_string(),
            Self::Text(text) => text.clone(),
        };
        let mode = u32::from_str_radix(&digits, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| value(key, "three octal digits are wanted, such as 0644"))?;
        if mode & 0o400 == 0 {
            return Err(value(key, "the owner must be able to read the file"));
        }
        if mode & 0o002 != 0 {
            return Err(value(key, "others must not be able to write the file"));
        }
        Ok(mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, OptionsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper.conf");
        fs::write(&path, text).unwrap();
        Settings::read(&path, None, "unix:///run/default.sock")
    }

    const X509: &str = "svid_file_name = \"svid.pem\"\nsvid_key_file_name = \"svid_key.pem\"\n\
                        svid_bundle_file_name = \"svid_bundle.pem\"\ncert_dir = \"certs\"\n";

    #[test]
    fn a_file_of_spiffe_helper_is_read_as_it_is() {
        let text = format!(
            "# a comment\nagent_address = \"/tmp/spire-agent/public/api.sock\"\ncmd = \"ghostunnel\"\n\
             cmd_args = \"server --listen \\\"a b\\\"\"\nrenew_signal = \"SIGUSR1\"\n{X509}\
             cert_file_mode = 0444\nkey_file_mode = \"0400\"\nadd_intermediates_to_bundle = true\n\
             include_federated_domains = true\nomit_expired = true\nhint = \"web\"\ndaemon_mode = true\n\
             jwt_svids = [{{jwt_audience=\"aud\", jwt_extra_audiences=[\"more\"], jwt_svid_file_name=\"jwt.token\"}}]\n\
             jwt_bundle_file_name = \"bundle.json\"\npid_file_name = \"/run/x.pid\"\n\
             health_checks {{\n  listener_enabled = true\n  bind_port = 8099\n}}\n"
        );
        let settings = read(&text).unwrap();
        assert_eq!(
            settings.socket,
            Path::new("/tmp/spire-agent/public/api.sock")
        );
        let x509 = settings.x509.as_ref().unwrap();
        assert_eq!((x509.cert_mode, x509.key_mode), (0o444, 0o400));
        assert!(x509.intermediates_to_bundle && x509.federated && x509.omit_expired);
        let (program, arguments) = settings.tell.command.as_ref().unwrap();
        assert_eq!((program.as_str(), arguments.len()), ("ghostunnel", 3));
        assert_eq!(settings.tell.signal, Some(Signal::SIGUSR1));
        assert_eq!(settings.jwt_svids[0].audience, ["aud", "more"]);
        assert_eq!(settings.health.unwrap().port(), 8099);
        assert_eq!(settings.names().len(), 5);
        assert_eq!(settings.hint, "web");
    }

    #[test]
    fn what_is_not_said_is_as_in_spiffe_helper() {
        let settings = read(X509).unwrap();
        assert!(settings.daemon);
        assert_eq!(settings.socket, Path::new("/run/default.sock"));
        let x509 = settings.x509.unwrap();
        assert_eq!((x509.cert_mode, x509.key_mode), (0o644, 0o600));
        assert!(settings.tell.command.is_none() && settings.health.is_none());
    }

    #[test]
    fn every_mistake_names_its_key() {
        let with = |more: &str| read(&format!("{X509}{more}\n")).unwrap_err();
        for (more, key) in [
            ("no_such_key = 1", "no_such_key"),
            (
                "jwt_svids = [{jwt_audience=\"a\", jwt_svid_file_name=\"t\", typo=1}]",
                "typo",
            ),
            ("jwt_svids = [{jwt_svid_file_name=\"t\"}]", "jwt_audience"),
            ("jwt_svids = [{jwt_audience=\"a\"}]", "jwt_svids"),
            ("jwt_bundle_file_name = \"../x\"", "jwt_bundle_file_name"),
            ("jwt_bundle_file_name = \"svid.pem\"", "same name"),
            ("key_file_mode = 0602", "key_file_mode"),
            ("key_file_mode = 0009", "key_file_mode"),
            ("cert_file_mode = 0044", "cert_file_mode"),
            ("cert_file_mode = 04755", "cert_file_mode"),
            ("renew_signal = \"USR9\"", "renew_signal"),
            ("pid_file_name = \"/run/x.pid\"", "renew_signal"),
            ("cmd = \"x\"\ncmd_args = \"\\\"open\"", "cmd_args"),
            ("cmd_args = \"x\"", "cmd_args"),
            ("agent_address = \"api.sock\"", "agent_address"),
            ("daemon_mode = \"maybe\"", "boolean"),
            (
                "health_checks {\n listener_enabled = true\n liveness_path = \"/x\"\n}",
                "liveness_path",
            ),
            ("this is no HCL", "configuration of the helper"),
        ] {
            let error = with(more);
            assert_eq!(error.code(), "FNL2033", "{more}");
            assert!(error.to_string().contains(key), "{more}: {error}");
        }
        let half = read("cert_dir = \"c\"\nsvid_file_name = \"a\"\n").unwrap_err();
        assert!(half.to_string().starts_with("svid_key_file_name"), "{half}");
        let none = read("cert_dir = \"c\"\n").unwrap_err();
        assert!(none.to_string().contains("no file is named"), "{none}");
        assert!(read(&X509.replace("cert_dir", "hint")).is_err());
        let missing = Settings::read(Path::new("/no/such/file"), None, "/s").unwrap_err();
        assert_eq!(missing.code(), "FNL2032");
    }
}
