//! The web services that the configuration names: reachable, trusted, and in time.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Finding, Verdict};
use crate::authority::OnFailure;
use crate::config::Settings;
use crate::observe::webhook;
use crate::web::{Endpoint, Token, Url};

/// A service as it is used.
struct Service<'a> {
    check: &'static str,
    url: &'a Url,
    token: Option<&'a Token>,
    authorities: Option<&'a Path>,
    /// How long the daemon waits for it.
    patience: Duration,
    /// What it means when it does not answer.
    silence: (Verdict, &'static str),
    /// The keys of its token and of its authorities.
    keys: [&'static str; 2],
}

/// Sends each service a HEAD request with its token: no question, and no record.
pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let authorization = settings.authorization.as_ref().map(|service| Service {
        check: "authorization",
        url: &service.url,
        token: service.token.as_ref(),
        authorities: service.authorities.as_deref(),
        patience: service.timeout,
        silence: match service.on_failure {
            OnFailure::Deny => (Verdict::Bad, "nobody new is served while it does not answer"),
            OnFailure::Allow => (Verdict::Warning, "everybody with a credential is served while it does not answer"),
        },
        keys: ["authorization.token-file", "authorization.ca"],
    });
    let webhook = settings.sessions.webhook.as_ref().map(|service| Service {
        check: "webhook",
        url: &service.url,
        token: service.token.as_ref(),
        authorities: service.authorities.as_deref(),
        patience: webhook::PATIENCE,
        silence: (Verdict::Warning, "session records are lost while it does not answer"),
        keys: ["sessions.webhook-token-file", "sessions.webhook-ca"],
    });
    [authorization, webhook].iter().flatten().map(Service::examine).collect()
}

impl Service<'_> {
    fn examine(&self) -> Finding {
        let began = Instant::now();
        let endpoint = Endpoint::trusting(self.url.clone(), self.token.cloned(), self.authorities);
        match endpoint.and_then(|endpoint| endpoint.knock(self.patience)) {
            Ok(status) => self.answered(status, began.elapsed()),
            Err(error) => self.failed(&error),
        }
    }

    /// Without the path, which may hold a secret.
    fn name(&self) -> String {
        let Url { is_tls, host, port, .. } = self.url;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("{}://{host}:{port}", if *is_tls { "https" } else { "http" })
    }

    fn answered(&self, status: u16, took: Duration) -> Finding {
        let [token, _] = self.keys;
        let said = format!("{} answers HEAD with {status} after {} ms", self.name(), took.as_millis());
        let warning = |remedy: &str| Finding::warning(self.check, said.clone(), remedy);
        match status {
            300..=399 => warning("ferryd follows no redirect: write the URL that it leads to"),
            401 | 403 | 407 => {
                warning(&format!("look into the log of the service: it may want another token, {token}"))
            }
            404 | 410 => warning("check the path of the URL, unless the service knows it for POST alone"),
            500 | 502.. => warning("look into the log of the service"),
            _ if took > self.patience / 2 => {
                let patience = self.patience.as_millis();
                warning(&format!("it is given up after {patience} ms; make it faster, or move it nearer"))
            }
            _ => Finding::good(self.check, said),
        }
    }

    fn failed(&self, error: &io::Error) -> Finding {
        let [_, authorities] = self.keys;
        let (verdict, meaning) = self.silence;
        let found = format!("{}: {error}; {meaning}", self.name());
        let refusal = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let remedy = match (refusal, error.kind()) {
            (Some(rustls::Error::InvalidCertificate(_)), _) => {
                format!("the full chain and the right name at the service; for an authority of your own, {authorities}")
            }
            (Some(_), _) => "check that the port speaks TLS, or write http:// in the URL".to_owned(),
            (None, io::ErrorKind::ConnectionRefused) => "start the service, or check the port in the URL".to_owned(),
            (None, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                let patience = self.patience.as_millis();
                format!(
                    "it has {patience} ms: check the address, the firewalls between, and what the service waits for"
                )
            }
            (None, io::ErrorKind::InvalidData) => "check that the URL names a web service: this is no HTTP".to_owned(),
            (None, _) => "check the name and the route from this host: `curl --head` says more".to_owned(),
        };
        match verdict {
            Verdict::Bad => Finding::bad(self.check, found, remedy),
            Verdict::Good | Verdict::Warning => Finding::warning(self.check, found, remedy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<R>(look: impl FnOnce(&Service<'_>) -> R) -> R {
        let url = Url::parse("https://[2001:db8::1]:8443/a-secret").unwrap();
        look(&Service {
            check: "webhook",
            url: &url,
            token: None,
            authorities: None,
            patience: Duration::from_secs(2),
            silence: (Verdict::Bad, "it matters"),
            keys: ["the.token", "the.ca"],
        })
    }

    #[test]
    fn an_answer_is_judged_by_its_status_and_its_time() {
        with(|service| {
            let verdict = |status| service.answered(status, Duration::from_millis(5)).verdict;
            for good in [200, 204, 400, 405, 411, 501] {
                assert_eq!(verdict(good), Verdict::Good, "{good}");
            }
            for odd in [301, 401, 403, 404, 500, 503] {
                assert_eq!(verdict(odd), Verdict::Warning, "{odd}");
            }
            assert_eq!(service.answered(200, Duration::from_millis(1001)).verdict, Verdict::Warning);
            let refused = service.answered(401, Duration::ZERO);
            assert_eq!(refused.found, "https://[2001:db8::1]:8443 answers HEAD with 401 after 0 ms");
            assert!(refused.remedy.unwrap().contains("the.token"));
        });
    }

    #[test]
    fn a_failure_says_what_it_means_and_what_mends_it() {
        with(|service| {
            let remedy = |error: io::Error| {
                let finding = service.failed(&error);
                assert!(finding.found.ends_with("; it matters") && !finding.found.contains("a-secret"), "{finding}");
                assert_eq!(finding.verdict, Verdict::Bad);
                finding.remedy.unwrap()
            };
            let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
            assert!(remedy(io::Error::new(io::ErrorKind::InvalidData, untrusted)).contains("the.ca"));
            assert!(remedy(io::ErrorKind::ConnectionRefused.into()).contains("start the service"));
            assert!(remedy(io::ErrorKind::WouldBlock.into()).contains("2000 ms"));
            assert!(remedy(io::ErrorKind::InvalidData.into()).contains("no HTTP"));
            assert!(remedy(io::ErrorKind::NotFound.into()).contains("check the name"));
        });
    }
}
