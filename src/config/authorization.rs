//! `authorization`: a web service that decides who may allocate.

use std::time::Duration;

use super::problem::Report;
use super::section::Section;
use super::values::{read_token, report_distrust};
use crate::authority::{Authority, OnFailure, Settings};
use crate::web::Url;

const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Clients give up after 39.5 s at the latest (RFC 8489 section 6.2.1), and users before that.
const TIMEOUT_MAX: Duration = Duration::from_secs(10);
const CACHE_MAX: Duration = Duration::from_secs(86400);

pub(super) fn read(mut section: Section, report: &mut Report) -> Option<Settings> {
    let url = section.text("url", report).filter(|entry| !entry.value.is_empty());
    let token = section.path("token-file", report);
    let authorities = section.path("ca", report);
    let timeout = section.duration("timeout", TIMEOUT_MIN..=TIMEOUT_MAX, report);
    let cache = section.duration("cache", Duration::ZERO..=CACHE_MAX, report);
    let on_failure = section.word("on-failure", &OnFailure::NAMES, report);
    section.finish(report);
    let token = token.and_then(|entry| read_token(&entry, report));
    let entry = url?;
    let Some(url) = Url::parse(&entry.value) else {
        // A URL may hold a secret in its path.
        let remedy = "write \"https://app.example.org/turn-authorization\"; a token goes into token-file";
        report.problem(entry.at.problem("no such URL", "a URL with http or https, without a user", remedy));
        return None;
    };
    let settings = Settings {
        url,
        token,
        authorities: authorities.as_ref().map(|entry| entry.value.clone()),
        timeout: timeout.map_or(Settings::TIMEOUT, |entry| entry.value),
        cache: cache.map_or(Settings::CACHE, |entry| entry.value),
        on_failure: on_failure.map_or(OnFailure::Deny, |entry| entry.value),
    };
    if let Err(error) = Authority::new(settings.clone()) {
        report_distrust(&entry.at, authorities.as_ref(), &error, report);
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load_text, problems};
    use super::*;

    #[test]
    fn a_service_is_a_url_and_without_one_nobody_is_asked() {
        let settings = load_text("").unwrap().settings;
        assert!(settings.authorization.is_none() && !settings.turn.authorize);
        let settings =
            load_text("[authorization]\nurl = \"http://127.0.0.1:1/x\"\non-failure = \"allow\"\ncache = \"0s\"");
        let settings = settings.unwrap().settings;
        assert!(settings.turn.authorize);
        let service = settings.authorization.unwrap();
        assert_eq!((service.on_failure, service.cache), (OnFailure::Allow, Duration::ZERO));
        assert_eq!(service.timeout, Duration::from_secs(2));
        let found = |text: &str| problems(&format!("[authorization]\n{text}"))[0].clone();
        assert!(found("url = \"app\"").contains("authorization.url: no such URL"));
        assert!(found("on-failure = \"open\"").contains("authorization.on-failure: found \"open\""));
        assert!(found("timeout = \"1m\"").contains("from 1s to 10s"));
        let words = found("url = \"https://a\"\nca = \"/dev/null\"");
        assert!(words.contains("authorization.ca: /dev/null cannot be used (holds no PEM certificate)"), "{words}");
        assert!(found("token-file = \"/nowhere\"").contains("cannot be read"));
    }
}
