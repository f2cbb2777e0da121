//! `sessions`: where session records go beside the log.

use super::problem::Report;
use super::section::Section;
use super::values::read_token;
use crate::observe::records::Settings;
use crate::observe::webhook;
use crate::web::Url;

pub(super) fn read(mut section: Section, report: &mut Report) -> Settings {
    let file = section.path("file", report).map(|entry| entry.value);
    let url = section.text("webhook", report).filter(|entry| !entry.value.is_empty());
    let token = section.path("webhook-token-file", report);
    let authorities = section.path("webhook-ca", report).map(|entry| entry.value);
    let starts = section.truth("starts", report).is_some_and(|entry| entry.value);
    section.finish(report);
    let token = token.and_then(|entry| read_token(&entry, report));
    let webhook = url.and_then(|entry| {
        let parsed = Url::parse(&entry.value);
        if parsed.is_none() {
            // A URL may hold a secret in its path.
            let remedy = "write \"https://billing.example.org/turn\"; a token goes into webhook-token-file";
            report.problem(entry.at.problem("no such URL", "a URL with http or https, without a user", remedy));
        }
        parsed.map(|url| webhook::Settings { url, token, authorities })
    });
    Settings { file, webhook, starts }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load_text, problems};

    #[test]
    fn a_webhook_is_a_url_with_a_token_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "sesame\n").unwrap();
        let text = |url: &str| format!("[sessions]\nwebhook = \"{url}\"\nwebhook-token-file = \"{}\"", path.display());
        let webhook = load_text(&text("http://127.0.0.1:1/x")).unwrap().settings.sessions.webhook.unwrap();
        assert_eq!(webhook.token.as_ref().map(|token| token.expose()), Some("sesame"));
        assert!(!format!("{webhook:?}").contains("sesame"), "the token is not shown");
        assert!(problems(&text("billing"))[0].contains("sessions.webhook: no such URL"));
        std::fs::write(&path, "two lines\nof text").unwrap();
        assert!(problems(&text("http://a"))[0].contains("webhook-token-file: the file holds no token"));
        assert!(problems("[sessions]\nwebhook-token-file = \"/nowhere/token\"")[0].contains("cannot be read"));
        assert_eq!(load_text("").unwrap().settings.sessions, Default::default());
    }
}
