//! Strategic merge patch: JSON merge with directives, and lists merged by the keys that the schema names.

use serde_json::{Map, Value};

use super::Error;
use super::order::{Identity, arrange, positions};
use crate::field::quote;
use crate::schema::{Patch, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to an object of that kind.
///
/// # Errors
/// When a directive is malformed, an item lacks its merge key, or a value is of another type than the object's.
pub fn strategic_merge(kind: &Type, current: &Value, patch: &Value) -> Result<Value, Error> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(Error::Malformed("invalid JSON document".to_owned()));
    };
    merge_object(current.clone(), patch.clone(), Known::Fields(kind)).map(Value::Object)
}

/// What the schema knows about an object's members.
#[derive(Clone, Copy)]
enum Known<'s> {
    Fields(&'s Type),
    Entries(&'s Shape),
    Nothing,
}

impl<'s> Known<'s> {
    fn of(shape: Option<&'s Shape>) -> Self {
        match shape {
            Some(Shape::Struct(ty)) => Known::Fields(ty),
            Some(Shape::Map(map)) => Known::Entries(&map.value),
            _ => Known::Nothing,
        }
    }

    fn member(self, name: &str) -> (Option<&'s Shape>, Option<&'s Patch>) {
        match self {
            Known::Fields(ty) => ty
                .field(name)
                .map_or((None, None), |f| (Some(&f.shape), f.patch.as_ref())),
            Known::Entries(shape) => (Some(shape), None),
            Known::Nothing => (None, None),
        }
    }
}

/// How a list is merged.
#[derive(Clone, Copy)]
struct ListRule<'s> {
    merge: bool,
    key: Option<&'s str>,
    items: Known<'s>,
}

impl<'s> ListRule<'s> {
    fn of(shape: Option<&'s Shape>, patch: Option<&'s Patch>) -> Self {
        let item = match shape {
            Some(Shape::List(list)) => Some(&list.item),
            _ => None,
        };
        ListRule {
            merge: patch.is_some_and(|p| p.merge),
            key: patch.and_then(|p| p.key.as_deref()),
            items: Known::of(item),
        }
    }
}

fn merge_object(mut original: Object, mut patch: Object, known: Known<'_>) -> Result<Object, Error> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(&directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, known)?;
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(&mut original, field, &value)?;
            continue;
        }
        let (shape, rule) = known.member(&key);
        match (original.get_mut(&key), value) {
            (_, Value::Null) => drop(original.remove(&key)),
            (Some(Value::Object(current)), Value::Object(patch)) => {
                let current = std::mem::take(current);
                let merged = if rule.is_some_and(|r| r.replace) {
                    patch
                } else {
                    merge_object(current, patch, Known::of(shape))?
                };
                original.insert(key, Value::Object(merged));
            }
            (Some(Value::Array(current)), Value::Array(patch)) => {
                let current = std::mem::take(current);
                let merged = merge_list(current, patch, ListRule::of(shape, rule))?;
                original.insert(key, Value::Array(merged));
            }
            (_, value) => match without_directives(value) {
                Some(value) => drop(original.insert(key, value)),
                None => drop(original.remove(&key)),
            },
        }
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, patch: &Object) -> Error {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    Error::Malformed(format!(
        "unknown patch type: {directive} in map: {}",
        Value::Object(patch.clone())
    ))
}

/// `$retainKeys` names the only members that stay.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let malformed = || Error::Malformed("invalid patch format of retainKeys".to_owned());
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(malformed());
    };
    let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
    let is_directive = |k: &str| k.starts_with(DELETE_FROM_LIST) || k.starts_with(SET_ORDER);
    if patch
        .iter()
        .any(|(k, v)| !v.is_null() && !is_directive(k) && !keys.contains(&k.as_str()))
    {
        return Err(malformed());
    }
    original.retain(|key, _| keys.contains(&key.as_str()));
    Ok(())
}

/// `$deleteFromPrimitiveList/field` names scalars to take out of a list.
fn delete_from_list(original: &mut Object, field: &str, values: &Value) -> Result<(), Error> {
    let malformed = || Error::Malformed("invalid patch format of primitive list".to_owned());
    let field = field.strip_prefix('/').ok_or_else(malformed)?;
    let values = values.as_array().ok_or_else(malformed)?;
    if let Some(Value::Array(list)) = original.get_mut(field) {
        let gone = positions(values, None);
        list.retain(|item| Identity::of(item, None).is_none_or(|i| !gone.contains_key(&i)));
    }
    Ok(())
}

/// `$setElementOrder/field` names the order of a list, which is merged here with its patch.
fn set_orders(original: &mut Object, patch: &mut Object, known: Known<'_>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let malformed = || Error::Malformed("invalid patch format of setElementOrder list".to_owned());
        let field = directive[SET_ORDER.len()..].strip_prefix('/').ok_or_else(malformed)?;
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed());
        };
        let (shape, rule) = known.member(field);
        let rule = ListRule::of(shape, rule);
        let live = list_of(original.get(field))?;
        let changes = list_of(patch.get(field))?;
        if let Some(changes) = changes {
            check_order(changes, &order, rule.key)?;
        }
        let merged = match (live, changes) {
            (None, None) => continue,
            (Some(live), None) => live.clone(),
            (None, Some(changes)) => clean_items(changes.clone()),
            (Some(live), Some(changes)) => merge_list(live.clone(), changes.clone(), rule)?,
        };
        require_keys(merged.iter().chain(&order), rule.key)?;
        let arranged = arrange(merged, &order, live.map_or(&[], Vec::as_slice), rule.key);
        patch.remove(field);
        original.insert(field.to_owned(), Value::Array(arranged));
    }
    Ok(())
}

fn list_of(value: Option<&Value>) -> Result<Option<&Vec<Value>>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(wrong_type("[]interface {}", other)),
    }
}

fn wrong_type(wanted: &str, found: &Value) -> Error {
    let found = match found {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    Error::Unprocessable(format!("expected a {wanted}, but received a {found}"))
}

fn lacks_key(item: &Value, key: &str) -> Error {
    Error::Unprocessable(format!("map: {item} does not contain declared merge key: {key}"))
}

fn require_keys<'a>(items: impl Iterator<Item = &'a Value>, key: Option<&str>) -> Result<(), Error> {
    let Some(key) = key else { return Ok(()) };
    for item in items {
        let object = item
            .as_object()
            .ok_or_else(|| wrong_type("map[string]interface {}", item))?;
        if !object.contains_key(key) {
            return Err(lacks_key(item, key));
        }
    }
    Ok(())
}

/// Items of a patch must come in the order that the patch asks for.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Error> {
    if changes.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in changes.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        require_keys(std::iter::once(item), key)?;
        let identity = Identity::of(item, key);
        if !wanted.any(|w| Identity::of(w, key) == identity) {
            return Err(Error::Unprocessable(format!(
                "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                Value::from(changes),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, rule: ListRule<'_>) -> Result<Vec<Value>, Error> {
    if !rule.merge {
        return Ok(clean_items(patch));
    }
    let objects = original.iter().chain(&patch).filter(|v| v.is_object()).count();
    match objects {
        0 if original.iter().chain(&patch).any(Value::is_array) => {
            Err(Error::Unprocessable("lists of lists are not supported".to_owned()))
        }
        0 => Ok(merge_scalars(original, &patch)),
        n if n < original.len() + patch.len() => {
            Err(Error::Unprocessable("list element types are not identical".to_owned()))
        }
        _ => match rule.key {
            Some(key) => merge_items(original, patch, key, rule.items),
            None => Err(Error::Unprocessable("cannot merge lists without merge key".to_owned())),
        },
    }
}

/// Lists of scalars are sets: what is new is added.
fn merge_scalars(live: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    let mut seen = std::collections::HashSet::new();
    let all = live
        .iter()
        .chain(patch)
        .filter(|v| Identity::of(v, None).is_none_or(|i| seen.insert(i)));
    let merged: Vec<Value> = all.cloned().collect();
    arrange(merged, patch, &live, None)
}

fn merge_items(original: Vec<Value>, patch: Vec<Value>, key: &str, known: Known<'_>) -> Result<Vec<Value>, Error> {
    let Directed {
        kept: original,
        changes,
        replace,
    } = apply_item_directives(original, patch, key)?;
    if replace {
        return Ok(clean_items(changes));
    }
    require_keys(changes.iter(), Some(key))?;
    let mut merged = original.clone();
    let mut index = positions(&merged, Some(key));
    for change in &changes {
        let Some(identity) = Identity::of(change, Some(key)) else {
            continue;
        };
        match index.get(&identity).copied() {
            Some(i) => {
                if let (Value::Object(item), Value::Object(change)) = (&mut merged[i], change) {
                    let item = std::mem::take(item);
                    merged[i] = Value::Object(merge_object(item, change.clone(), known)?);
                }
            }
            None => {
                index.insert(identity, merged.len());
                merged.extend(without_directives(change.clone()));
            }
        }
    }
    Ok(arrange(merged, &changes, &original, Some(key)))
}

struct Directed {
    kept: Vec<Value>,
    changes: Vec<Value>,
    replace: bool,
}

/// Takes out items that `$patch: delete` names, and learns whether `$patch: replace` is among the items.
fn apply_item_directives(original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<Directed, Error> {
    let mut out = Directed {
        kept: original,
        changes: Vec::with_capacity(patch.len()),
        replace: false,
    };
    let mut deleted = Vec::new();
    for item in patch {
        match item.get(DIRECTIVE).map(|d| (d.as_str(), d)) {
            None => out.changes.push(item),
            Some((Some("delete"), _)) => {
                deleted.push(Identity::of(&item, Some(key)).ok_or_else(|| lacks_key(&item, key))?);
            }
            Some((Some("replace"), _)) => out.replace = true,
            Some((Some("merge"), _)) => {
                return Err(Error::Malformed(
                    "merging lists cannot yet be specified in the patch".to_owned(),
                ));
            }
            Some((_, directive)) => {
                return Err(Error::Malformed(format!(
                    "unknown patch type: {} in map: {item}",
                    quote(&directive.to_string())
                )));
            }
        }
    }
    if !deleted.is_empty() {
        let deleted: std::collections::HashSet<Identity> = deleted.into_iter().collect();
        out.kept
            .retain(|item| Identity::of(item, Some(key)).is_none_or(|i| !deleted.contains(&i)));
    }
    Ok(out)
}

fn clean_items(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(without_directives).collect()
}

/// A new value: nulls in it delete nothing, and what is a directive is no value.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.contains_key(DIRECTIVE) => None,
        Value::Object(object) => Some(Value::Object(
            object
                .into_iter()
                .filter(|(key, value)| {
                    let directive =
                        key == RETAIN_KEYS || key.starts_with(DELETE_FROM_LIST) || key.starts_with(SET_ORDER);
                    !directive && !value.is_null()
                })
                .filter_map(|(key, value)| Some((key, without_directives(value)?)))
                .collect(),
        )),
        Value::Array(items) => Some(Value::Array(clean_items(items))),
        scalar => Some(scalar),
    }
}

#[cfg(test)]
mod tests;
