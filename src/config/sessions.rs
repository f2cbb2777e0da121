//! `sessions`: where session records go beside the log.

use super::problem::Report;
use super::section::Section;
use super::values::{read_token, report_distrust};
use crate::observe::records::Settings;
use crate::observe::webhook;
use crate::web::Url;

pub(super) fn read(mut section: Section, report: &mut Report) -> Settings {
    let file = section.path("file", report).map(|entry| entry.value);
    let url = section.text("webhook", report).filter(|entry| !entry.value.is_empty());
    let token = section.path("webhook-token-file", report);
    let authorities = section.path("webhook-ca", report);
    let starts = section.truth("starts", report).is_some_and(|entry| entry.value);
    section.finish(report);
    let token = token.and_then(|entry| read_token(&entry, report));
    let webhook = url.and_then(|entry| {
        let Some(url) = Url::parse(&entry.value) else {
            // A URL may hold a secret in its path.
            let remedy = "write \"https://billing.example.org/turn\"; a token goes into webhook-token-file";
            report.problem(entry.at.problem("no such URL", "a URL with http or https, without a user", remedy));
            return None;
        };
        let named = authorities.as_ref().map(|entry| entry.value.clone());
        let settings = webhook::Settings { url, token, authorities: named };
        if let Err(error) = settings.clone().endpoint() {
            report_distrust(&entry.at, authorities.as_ref(), &error, report);
        }
        Some(settings)
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
        let words = &problems("[sessions]\nwebhook = \"https://a\"\nwebhook-ca = \"/nowhere/ca.pem\"")[0];
        assert!(words.contains("sessions.webhook-ca: /nowhere/ca.pem cannot be used (No such file"), "{words}");
        assert_eq!(load_text("").unwrap().settings.sessions, Default::default());
    }
}
