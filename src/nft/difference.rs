//! What leads from a table as nft lists it to the wanted one. Pure.

use super::{
    expression::Expression,
    listed::ListedTable,
    run::Transaction,
    table::{Contents, Table},
};

/// How much of a table is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anew {
    /// Nothing, but for elements of sets.
    Nothing,
    /// All rules, and the counters of the table that are not as wanted. The others go on, and sets keep what they have.
    Rules,
    /// The whole table: its sets remember nothing.
    Table,
}

/// What leads to the wanted table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// How much is made anew.
    pub anew: Anew,
    /// Elements that are taken out of a set of a table that stays.
    pub removed: Vec<Expression>,
    /// Elements that are put into a set of a table that stays.
    pub added: Vec<Expression>,
    /// The commands; none if the table is as wanted.
    pub transaction: Transaction,
}

/// Compares `wanted` with what nft lists: the attributes of chains and sets, the comments of rules, in order within a
/// chain, and elements one by one. So what is not touched counts on, and as all is one transaction, no packet meets a
/// table without rules.
#[must_use]
pub fn difference(wanted: &Table, listed: Option<&ListedTable>) -> Difference {
    let as_listed = ListedTable::of_wanted(wanted);
    let mut difference = Difference {
        anew: Anew::Nothing,
        removed: Vec::new(),
        added: Vec::new(),
        transaction: Transaction::default(),
    };
    let Some(listed) = listed.filter(|listed| listed.is_shaped_as(&as_listed)) else {
        difference.anew = Anew::Table;
        difference.transaction = replacement(wanted);
        return difference;
    };
    let transaction = &mut difference.transaction;
    if !listed.is_ruled_as(&as_listed) {
        difference.anew = Anew::Rules;
        transaction.push("flush", wanted.name.json());
        let counter = |name: &String| wanted.name.object("counter", name);
        for name in listed.counters.keys() {
            if !wanted.counters.contains(name) {
                transaction.push("delete", counter(name));
            }
        }
        for name in &wanted.counters {
            if !listed.counters.contains_key(name) {
                transaction.push("add", counter(name));
            }
        }
        transaction.push_all("add", wanted.rule_objects());
    }
    for set in &wanted.sets {
        let (Contents::These(these), Some(listed)) = (&set.contents, listed.sets.get(set.name))
        else {
            continue;
        };
        for (key, element) in &listed.elements {
            if !these.contains_key(key) {
                transaction.remove_element(wanted.name, set.name, element);
                difference.removed.push(element.clone());
            }
        }
        for (key, element) in these {
            if !listed.elements.contains_key(key) {
                transaction.add_element(wanted.name, set.name, element);
                difference.added.push(element.clone());
            }
        }
    }
    difference
}

/// Leaves exactly the wanted table, whatever was there.
fn replacement(wanted: &Table) -> Transaction {
    let mut transaction = Transaction::removal(wanted.name);
    transaction.push("add", wanted.name.json());
    transaction.push_all("add", wanted.counter_objects());
    transaction.push_all("add", wanted.set_objects());
    transaction.push_all("add", wanted.chain_objects());
    transaction.push_all("add", wanted.rule_objects());
    for set in &wanted.sets {
        if let Contents::These(elements) = &set.contents
            && !elements.is_empty()
        {
            transaction.add_elements(wanted.name, set.name, elements.values());
        }
    }
    transaction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{
        Family, Hook,
        expression::meta,
        statement::{count_in, equal, goto},
    };

    fn wanted(counters: &[&str]) -> Table {
        let mut table = Table::new(Family::Inet, "t");
        table.chain("judge");
        table.base_chain("forward", Hook::filter("forward", 20));
        table.rule("forward", [goto("judge")]);
        for counter in counters {
            table.counter(counter);
            table.rule(
                "judge",
                [equal(meta("iifname"), *counter), count_in(counter)],
            );
        }
        table
    }

    fn known(elements: &[&str]) -> Table {
        let mut table = wanted(&[]);
        let elements = elements.iter().map(|it| Expression::from(*it));
        table.set("known", &["ifname"], elements);
        table
    }

    fn verbs(transaction: &Transaction) -> Vec<&str> {
        let commands = transaction.commands().iter();
        commands
            .map(|command| command.as_object().expect("a command"))
            .map(|command| command.keys().next().expect("a verb").as_str())
            .collect()
    }

    #[test]
    fn a_table_that_is_as_wanted_is_left_alone() {
        for table in [wanted(&["a", "b"]), known(&["a"])] {
            let mut listed = ListedTable::of_wanted(&table);
            listed
                .counters
                .values_mut()
                .for_each(|packets| *packets = 7);
            listed.rules.iter_mut().for_each(|rule| rule.packets = 7);
            let difference = difference(&table, Some(&listed));
            assert_eq!(difference.anew, Anew::Nothing);
            assert!(difference.transaction.is_empty());
        }
    }

    #[test]
    fn counters_of_rules_that_stay_are_not_touched() {
        let before = ListedTable::of_wanted(&wanted(&["a", "b"]));
        let found = difference(&wanted(&["b", "c"]), Some(&before));
        assert_eq!(found.anew, Anew::Rules);
        assert_eq!(
            verbs(&found.transaction),
            ["flush", "delete", "add", "add", "add", "add"]
        );
        let commands = found.transaction.commands();
        assert_eq!(commands[1]["delete"]["counter"]["name"], "a");
        assert_eq!(commands[2]["add"]["counter"]["name"], "c");
    }

    #[test]
    fn a_table_whose_chains_were_touched_is_replaced() {
        let table = wanted(&["a"]);
        let mut strange = ListedTable::of_wanted(&table);
        strange.foreign = 1;
        let mut hurt = ListedTable::of_wanted(&table);
        hurt.chains.pop();
        for listed in [None, Some(&strange), Some(&hurt)] {
            let found = difference(&table, listed);
            assert_eq!(found.anew, Anew::Table);
            assert_eq!(&verbs(&found.transaction)[..3], ["add", "delete", "add"]);
        }
    }

    #[test]
    fn a_rule_that_is_missing_added_or_out_of_order_is_mended() {
        let table = wanted(&["a", "b"]);
        let as_wanted = ListedTable::of_wanted(&table);
        let mut swapped = as_wanted.clone();
        swapped.rules.swap(1, 2);
        let mut missing = as_wanted.clone();
        missing.rules.pop();
        let mut added = as_wanted.clone();
        added.rules.extend(as_wanted.rules.last().cloned());
        for listed in [swapped, missing, added] {
            let found = difference(&table, Some(&listed));
            assert_eq!(found.anew, Anew::Rules);
            assert_eq!(verbs(&found.transaction), ["flush", "add", "add", "add"]);
        }
    }

    #[test]
    fn elements_come_and_go_one_by_one() {
        let listed = ListedTable::of_wanted(&known(&["a", "b"]));
        let found = difference(&known(&["b", "c"]), Some(&listed));
        assert_eq!(found.anew, Anew::Nothing);
        assert_eq!(found.removed, [Expression::from("a")]);
        assert_eq!(found.added, [Expression::from("c")]);
        let mut expected = Transaction::default();
        let name = known(&[]).name();
        expected.remove_element(name, "known", &"a".into());
        expected.add_element(name, "known", &"c".into());
        assert_eq!(found.transaction, expected);
        // A table that is made anew has them all.
        let whole = difference(&known(&["b", "c"]), None).transaction;
        let last = whole.commands().last().expect("a command");
        assert_eq!(
            last["add"]["element"]["elem"],
            serde_json::json!(["b", "c"])
        );
    }

    #[test]
    fn what_the_kernel_remembers_is_its_own() {
        let mut table = wanted(&[]);
        table.memory("seen", &["ipv4_addr"], Some(30), None);
        let mut listed = ListedTable::of_wanted(&table);
        let seen = listed.sets.get_mut("seen").expect("a set");
        seen.elements.insert("a".to_owned(), "a".into());
        assert!(difference(&table, Some(&listed)).transaction.is_empty());
    }
}
