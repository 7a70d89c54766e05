// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A token in the manner of GLM (ERC-20, 18 decimals), which anybody may make more of.
contract MockGLM {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    string public constant name = "Mock GLM";
    string public constant symbol = "GLM";
    uint8 public constant decimals = 18;

    uint256 public totalSupply;
    mapping(address owner => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;

    function mint(address to, uint256 amount) external {
        totalSupply += amount;
        balanceOf[to] += amount;
        emit Transfer(address(0), to, amount);
    }

    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        emit Approval(msg.sender, spender, amount);
        return true;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        move(msg.sender, to, amount);
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        require(allowed >= amount, "allow");
        if (allowed != type(uint256).max) allowance[from][msg.sender] = allowed - amount;
        move(from, to, amount);
        return true;
    }

    /// What arrives of an amount. A token that takes a fee lets less of it through.
    function arriving(uint256 amount) internal pure virtual returns (uint256) {
        return amount;
    }

    function move(address from, address to, uint256 amount) private {
        require(balanceOf[from] >= amount, "bal");
        balanceOf[from] -= amount;
        uint256 arrives = arriving(amount);
        balanceOf[to] += arrives;
        totalSupply -= amount - arrives;
        emit Transfer(from, to, arrives);
    }
}
