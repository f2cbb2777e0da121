//! coturn's SQLite database, which is left alone: the commands that print what is in it as ferryd reads it.

/// Where coturn looks when no file is named.
const DEFAULT_FILE: &str = "/var/lib/turn/turndb";

/// A database, and the realm of the users and secrets in it that count.
pub(super) struct Database {
    file: String,
    realm: String,
}

impl Database {
    /// What cannot stand in a command as it is written is left for the operator to fill in.
    pub(super) fn new(file: Option<&str>, realm: Option<&str>) -> Self {
        let file = file.filter(|file| !file.is_empty()).unwrap_or(DEFAULT_FILE);
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        Self {
            file: if plain(file) { file } else { "FILE" }.to_owned(),
            realm: realm.filter(|realm| plain(realm)).unwrap_or("REALM").to_owned(),
        }
    }

    /// Prints a table of TOML for each user.
    pub(super) fn users(&self) -> String {
        let Self { file, realm } = self;
        format!(
            "`sqlite3 {file} \"select '[[auth.user]]' || char(10) || 'name = ''' || name || '''' || char(10) || \
             'key = ''' || hmackey || '''' from turnusers_lt where realm = '{realm}'\"` prints them for the end of \
             ferryd.toml"
        )
    }

    /// Prints one secret on each line.
    pub(super) fn secrets(&self) -> String {
        let Self { file, realm } = self;
        format!(
            "`sqlite3 {file} \"select value from turn_secret where realm = '{realm}'\"` prints them for a file that \
             auth.shared-secrets-file names"
        )
    }
}
