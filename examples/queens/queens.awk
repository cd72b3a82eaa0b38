# Counts the solutions for n queens whose first queen stands in the given column (1..n).

function place(row,    c, count) {
    if (row > n) return 1
    for (c = 1; c <= n; c++)
        if (!(c in taken) && !((row + c) in rising) && !((row - c) in falling)) {
            taken[c]; rising[row + c]; falling[row - c]
            count += place(row + 1)
            delete taken[c]; delete rising[row + c]; delete falling[row - c]
        }
    return count + 0
}

BEGIN {
    taken[column]; rising[1 + column]; falling[1 - column]
    print place(2)
}
