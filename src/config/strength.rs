//! How hard a password is to guess, estimated on the safe side.

/// Passwords below this are refused: a TURN server answers guesses, and one captured request allows guessing offline at
/// some 2^33 MD5 per second and card.
pub const STRENGTH_BITS_MIN: u32 = 80;

/// Words that guessing starts from, whatever is around them.
const COMMON: [&str; 32] = [
    "password", "passwort", "passwd", "pass", "secret", "geheim", "turn", "stun", "coturn", "ferryd", "webrtc",
    "server", "admin", "root", "user", "guest", "test", "demo", "example", "change", "default", "welcome", "letmein",
    "login", "north", "south", "monkey", "dragon", "master", "shadow", "iloveyou", "football",
];

/// Runs that a hand makes on a keyboard, in either direction.
const RUNS: [&str; 6] =
    ["abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop"];

/// The estimated strength of a password in bits.
///
/// Each character counts the logarithm of the size of the classes seen (digits 10, lower case 26, upper case 26, other
/// ASCII 33, beyond ASCII 100). A character that repeats or continues a run of the ones before counts one bit, a common
/// word ten bits as a whole, and a password of few different characters no more than those allow. Hexadecimal digits
/// alone count four bits.
pub fn strength_bits(password: &str) -> u32 {
    let lowered = password.to_lowercase();
    let shortened = COMMON.iter().fold(lowered.clone(), |text, word| text.replace(word, ""));
    let words_removed = (lowered.chars().count() - shortened.chars().count()) as f64 / 4.0;
    let kept: Vec<char> = shortened.chars().collect();
    let per_character = bits_per_character(password);
    let mut bits = if words_removed > 0.0 { 10.0 * words_removed.min(2.0) } else { 0.0 };
    for (index, character) in kept.iter().enumerate() {
        let continues = index >= 2 && is_run(&kept[index - 2..=index]);
        let repeats = index >= 1 && kept[index - 1] == *character || repeats_a_block(&kept, index);
        bits += if continues || repeats { 1.0 } else { per_character };
    }
    // Substituting one character for another in a poor alphabet adds length, not choice.
    let mut different = kept.clone();
    different.sort_unstable();
    different.dedup();
    let ceiling = (different.len().max(1) as f64 + 1.0).log2() * kept.len() as f64 + 20.0;
    bits.min(ceiling) as u32
}

fn bits_per_character(password: &str) -> f64 {
    if password.chars().all(|c| c.is_ascii_hexdigit()) && password.chars().any(|c| c.is_ascii_digit()) {
        return 4.0;
    }
    let classes = [
        (10.0, password.chars().any(|c| c.is_ascii_digit())),
        (26.0, password.chars().any(|c| c.is_ascii_lowercase())),
        (26.0, password.chars().any(|c| c.is_ascii_uppercase())),
        (33.0, password.chars().any(|c| c.is_ascii() && !c.is_ascii_alphanumeric())),
        (100.0, !password.is_ascii()),
    ];
    let size: f64 = classes.iter().filter(|(_, seen)| *seen).map(|(size, _)| size).sum();
    size.max(1.0).log2()
}

fn is_run(three: &[char]) -> bool {
    let forward: String = three.iter().collect();
    let backward: String = three.iter().rev().collect();
    RUNS.iter().any(|run| run.contains(&forward) || run.contains(&backward))
}

/// Whether the four characters that end here have stood in the password before.
fn repeats_a_block(characters: &[char], index: usize) -> bool {
    let Some(start) = index.checked_sub(3) else { return false };
    let block = &characters[start..=index];
    characters[..index].windows(4).take(start).any(|earlier| earlier == block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_remedies_make_is_strong() {
        // openssl rand -base64 18, openssl rand -hex 16 and a password of ferryd credential.
        for strong in [
            "mVJ0s3yTzQkU8cXeW1bNhR4p",
            "9f86d081884c7d659a2feaa0c55ad015",
            "kQ2bW9z7yTnVxR5sE0uJmA3cLpI=",
            "G7$kd!w9Zq@4vLx#",
            "correct horse battery staple umbrella",
        ] {
            assert!(strength_bits(strong) >= STRENGTH_BITS_MIN, "{strong}: {}", strength_bits(strong));
        }
    }

    #[test]
    fn what_people_type_is_weak() {
        for weak in [
            "",
            "a",
            "north",
            "secret",
            "password123",
            "Passw0rd!2024",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "qwertyuiopasdfghjklzxcvbnm",
            "testtesttesttesttesttesttest",
            "xk3wxk3wxk3wxk3wxk3wxk3wxk3w",
            "1234567890123456789012345678901234567890",
            "turnserver-password-secret",
            "0123456789abcdef",
            "abababababababababababab",
        ] {
            assert!(strength_bits(weak) < STRENGTH_BITS_MIN, "{weak}: {}", strength_bits(weak));
        }
    }
}
