//! Quoted text as Go writes it: what reads downwardAPI files expects upstream's.

use std::fmt::Write as _;

/// `text` in quotation marks, with what cannot be printed escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    result.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => result.extend(['\\', c]),
            '\u{7}' => result.push_str(r"\a"),
            '\u{8}' => result.push_str(r"\b"),
            '\u{b}' => result.push_str(r"\v"),
            '\u{c}' => result.push_str(r"\f"),
            '\n' => result.push_str(r"\n"),
            '\r' => result.push_str(r"\r"),
            '\t' => result.push_str(r"\t"),
            c if is_printable(c) => result.push(c),
            c if c.is_ascii() => drop(write!(result, r"\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xffff => drop(write!(result, r"\u{:04x}", u32::from(c))),
            c => drop(write!(result, r"\U{:08x}", u32::from(c))),
        }
    }
    result.push('"');
    result
}

/// Whether Go prints a character: letters, marks, numbers, punctuation, symbols and the blank. The standard library draws the same
/// line; marks, which it escapes where they stand alone, it prints after another character.
fn is_printable(c: char) -> bool {
    c == '\'' || ['a', c].iter().collect::<String>().escape_debug().nth(1) == Some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_go_does() {
        let cases = [
            ("", r#""""#),
            ("plain 'text' $x", r#""plain 'text' $x""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\u{7}\u{8}\u{c}\n\r\t\u{b}", r#""\a\b\f\n\r\t\v""#),
            ("\0\u{1}\u{1b}\u{7f}", r#""\x00\x01\x1b\x7f""#),
            (
                "\u{80}\u{a0}\u{ad}\u{200d}\u{2028}",
                r#""\u0080\u00a0\u00ad\u200d\u2028""#,
            ),
            ("\u{feff}\u{e000}\u{e0001}", r#""\ufeff\ue000\U000e0001""#),
            ("é ß 日本 €", r#""é ß 日本 €""#),
            ("\u{2764}\u{fe0f} e\u{301} 😀", "\"\u{2764}\u{fe0f} e\u{301} 😀\""),
            ("\u{301}", "\"\u{301}\""),
        ];
        for (text, expected) in cases {
            assert_eq!(quoted(text), expected, "{text:?}");
        }
    }
}
