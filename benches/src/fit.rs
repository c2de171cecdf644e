//! A straight line fitted to points.

/// The line `at_zero + slope * x`.
pub struct Line {
    pub at_zero: f64,
    pub slope: f64,
}

/// Fits a line by the least squares of the relative errors, so that a small value counts as much as a large one.
pub fn fit(points: impl Iterator<Item = (f64, f64)>) -> Line {
    let [mut n, mut sx, mut sy, mut sxx, mut sxy] = [0.0; 5];
    for (x, y) in points {
        let weight = 1.0 / (y * y);
        n += weight;
        sx += weight * x;
        sy += weight * y;
        sxx += weight * x * x;
        sxy += weight * x * y;
    }
    let slope = (n * sxy - sx * sy) / (n * sxx - sx * sx);
    Line { at_zero: (sy - slope * sx) / n, slope }
}
